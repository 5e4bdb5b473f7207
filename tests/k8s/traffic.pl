#!/usr/bin/perl
# Traffic that runs while something happens to a cluster.
#   traffic.pl server PORT               answers every line with itself and its pod's name
#   traffic.pl client DIR NAME=HOST...   to each HOST (port 7): one connection that lives on (DIR/long-NAME) and new ones all
#                                        the time (DIR/new-NAME); each file: how many were answered, failures in DIR/failures
# Plain Perl, as there is in every Debian.
use strict; use warnings;
use IO::Socket::IP; use IO::Select;
$| = 1; $SIG{PIPE} = 'IGNORE';
my $mode = shift @ARGV or die "server or client\n";
my $LIMIT = 8;      # seconds until an answer counts as missing
my $EVERY = 0.4;    # seconds between questions

sub now { open my $f, '<', '/proc/uptime' or die; my ($s) = split ' ', <$f>; return $s }
sub hms { my @t = gmtime; return sprintf '%02d:%02d:%02d', @t[2, 1, 0] }

if ($mode eq 'server') {
    my $port = shift @ARGV; my $name = $ENV{HOSTNAME} // 'server';
    my $l = IO::Socket::IP->new(LocalHost => $ENV{LISTEN} // '::', LocalPort => $port, Listen => 512, ReuseAddr => 1, V6Only => 0) or die "listen: $@";
    my $s = IO::Select->new($l);
    $SIG{TERM} = sub { exit 0 };
    while (1) {
        for my $c ($s->can_read) {
            if ($c == $l) { my $n = $l->accept; $s->add($n) if $n; next }
            my $got = sysread $c, my $b, 4096;
            if (!$got) { $s->remove($c); close $c; next }
            chomp $b; syswrite $c, "$b $name\n";
        }
    }
}

my $dir = shift @ARGV;
sub complain { my ($what, $why) = @_; open my $f, '>>', "$dir/failures" or die; syswrite $f, hms() . " $what: $why\n"; close $f }
sub tell_count { my ($file, $n) = @_; open my $f, '>', "$file.new" or die; print $f "$n\n"; close $f; rename "$file.new", $file }
sub dial { my ($host) = @_; return IO::Socket::IP->new(PeerHost => $host, PeerPort => 7, Timeout => $LIMIT, Type => Socket::SOCK_STREAM()) }
# One question and its answer; undef and why when there is none.
sub ask {
    my ($c, $q) = @_;
    defined syswrite($c, "$q\n") or return "sending: $!";
    my $by = now() + $LIMIT; my $got = '';
    while ($got !~ /\n/) {
        my $left = $by - now();
        return "no answer within $LIMIT s" if $left <= 0 || !IO::Select->new($c)->can_read($left);
        my $n = sysread $c, my $b, 4096;
        return "receiving: $!" unless defined $n;
        return 'closed by the other side' unless $n;
        $got .= $b;
    }
    return $got =~ /^\Q$q\E / ? undef : "another's answer: $got";
}
for my $target (@ARGV) {
    my ($name, $host) = split /=/, $target, 2;
    for my $kind ('long', 'new') {
        next if fork;
        my ($what, $n, $c, $failing) = ("$kind-$name", 0, undef, 0);
        select undef, undef, undef, rand $EVERY;
        while (1) {
            my $t = now(); my $why; my $fresh = !$c;
            if (!$c) { $c = dial($host) or $why = "connecting: $@" }
            $why //= ask($c, "$what $n") if $c;
            # Until it worked for the first time, the other end may not be there yet; and what fails on is told once a second at most.
            if (defined $why) { complain($what, $why . ($fresh ? '' : " after $n answers")) if $n; undef $c; select undef, undef, undef, 1 }
            else { tell_count("$dir/$what", ++$n); my $took = now() - $t; complain("$what (slow)", sprintf '%.1f s', $took) if $took > 2 }
            undef $c if $kind eq 'new';
            my $rest = $EVERY - (now() - $t); select undef, undef, undef, $rest if $rest > 0;
        }
    }
}
$SIG{TERM} = sub { kill 'KILL', -$$; exit 0 };
1 while wait != -1;
