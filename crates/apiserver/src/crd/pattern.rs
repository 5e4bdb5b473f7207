//! Regular expressions of Go (RE2), which definitions are written in, in the syntax of crate `regex`.
//!
//! The two differ in little: Go's `\d`, `\w`, `\s` and `\b` are ASCII, and in a Go class `[`, `&&`, `--` and `~~` are
//! plain characters.

/// The same expression for crate `regex`. What Go would refuse is mostly refused there too.
pub(crate) fn from_go(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut class = false;
    // Where in a class one is: `]` directly after its start is itself.
    let mut first = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let begins = std::mem::take(&mut first);
        match c {
            '\\' => match chars.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str("[\\t\\n\\x0C\\r ]"),
                Some('S') => out.push_str("[^\\t\\n\\x0C\\r ]"),
                Some('b') if !class => out.push_str("(?-u:\\b)"),
                Some('B') if !class => out.push_str("(?-u:\\B)"),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            '[' if !class => {
                (class, first) = (true, true);
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
            }
            // `[:alpha:]`
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                let mut before = ' ';
                for c in chars.by_ref() {
                    out.push(c);
                    if before == ':' && c == ']' {
                        break;
                    }
                    before = c;
                }
            }
            '[' => out.push_str("\\["),
            ']' if class && begins => out.push_str("\\]"),
            ']' if class => {
                class = false;
                out.push(']');
            }
            '&' | '~' if class => out.extend(['\\', c]),
            // The start of a range, or its end.
            '-' if class && begins => out.push_str("\\-"),
            '-' if class && chars.peek() == Some(&'-') => {
                chars.next();
                out.push_str("-\\-");
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    #[test]
    fn what_go_means() {
        for (go, yes, no) in [
            (r"^\d+$", "42", "٤"),
            (r"^[\d.]+$", "1.2", "x"),
            (r"^[^[]$", "a", "["),
            (r"^[]a]+$", "]a", "b"),
            (r"^[a&&b]+$", "&", "c"),
            (r"^[+--]$", ",", "a"),
            (r"^[[:alpha:]_]+$", "ab_", "1"),
            (r"^\w+\b$", "ab", "ä"),
            (r"^a\.b\/c$", "a.b/c", "axb/c"),
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "*/5 * * * 1", "* * * *"),
        ] {
            let r = Regex::new(&from_go(go)).unwrap_or_else(|e| panic!("{go}: {e}"));
            assert!(r.is_match(yes), "{go} takes {yes}");
            assert!(!r.is_match(no), "{go} refuses {no}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "\\PC{0,40}") { let _ = Regex::new(&from_go(&s)); }
    }
}
