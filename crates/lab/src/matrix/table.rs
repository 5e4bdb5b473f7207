//! The matrix as a table of at most 80 columns, and as JSON.

use std::collections::BTreeSet;

use serde::Serialize;
use types::{Family, FamilySet};

use super::plan::{Check, Probe};
use crate::prober::Said;

/// What came of the probes of one row and family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Probes.
    pub probes: usize,
    /// Those that did what they must.
    pub good: usize,
    /// Packets or connections sent in all.
    pub tries: u32,
    /// Those that got no answer, also where a later one did.
    pub lost: u32,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which.
    pub check: Check,
    /// Its title.
    pub title: &'static str,
    /// IPv4, when the lab has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Cell>,
    /// IPv6, when the lab has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Cell>,
}

/// A probe that did not do what it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The row.
    pub check: Check,
    /// The column.
    pub family: Family,
    /// Who asked.
    pub from: String,
    /// Whom, in words.
    pub to: String,
    /// The address.
    pub address: String,
    /// What happened.
    pub problem: String,
    /// The hop where it stops, as `seaway trace` finds it in the programmed state.
    pub stops: Option<String>,
}

/// The whole matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every probe did what it must.
    pub ok: bool,
    /// Rows.
    pub rows: Vec<Row>,
    /// What did not.
    pub failures: Vec<Failure>,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// Whether the test ran pods of its own.
    pub own_pods: bool,
}

impl Report {
    /// From probes and their answers.
    #[must_use]
    pub fn new(results: &[(Probe, Said)], families: FamilySet) -> Self {
        let mut failures = Vec::new();
        let mut rows = Vec::new();
        for check in Check::ALL {
            let mut cell = |family| {
                families.has(family).then(|| {
                    let mut c = Cell::default();
                    for (p, said) in results.iter().filter(|(p, _)| p.check == check && p.family == family) {
                        c.probes += 1;
                        c.tries += said.tries;
                        c.lost += said.lost;
                        match p.expect.judge(said) {
                            Ok(()) => c.good += 1,
                            Err(problem) => failures.push(Failure {
                                check,
                                family,
                                from: p.source.to_string(),
                                to: p.label.clone(),
                                address: if p.ask.to.port() == 0 {
                                    p.ask.to.ip().to_string()
                                } else {
                                    p.ask.to.to_string()
                                },
                                problem,
                                stops: None,
                            }),
                        }
                    }
                    c
                })
            };
            let (ipv4, ipv6) = (cell(Family::V4), cell(Family::V6));
            let asked = [&ipv4, &ipv6].into_iter().flatten().any(|c| c.probes > 0);
            if asked || check != Check::LoadBalancer {
                rows.push(Row { check, title: check.title(), ipv4, ipv6 });
            }
        }
        Self { ok: failures.is_empty(), rows, failures, ms: 0, own_pods: false }
    }

    /// The failures that a person is shown: the first of each cell. JSON has all.
    #[must_use]
    pub fn shown(&self) -> Vec<&Failure> {
        let mut seen = BTreeSet::new();
        self.failures.iter().filter(|f| seen.insert((f.check, f.family))).collect()
    }

    /// The same, to explain them.
    pub fn shown_mut(&mut self) -> impl Iterator<Item = &mut Failure> {
        let mut seen = BTreeSet::new();
        self.failures.iter_mut().filter(move |f| seen.insert((f.check, f.family)))
    }
}

fn cell(c: Option<&Cell>) -> String {
    match c {
        None => String::new(),
        Some(c) if c.probes == 0 => "-".into(),
        Some(c) => {
            let word = if c.good == c.probes { "ok" } else { "FAIL" };
            let lost = if c.lost > 0 { format!(", {} lost", c.lost) } else { String::new() };
            format!("{word:<4} {}/{}{lost}", c.good, c.probes)
        }
    }
}

/// The widest line.
const COLUMNS: usize = 80;

/// The table, with colours for a terminal when asked.
#[must_use]
pub fn render(r: &Report, colour: bool) -> String {
    let mut out = String::new();
    let v4 = r.rows.iter().any(|x| x.ipv4.is_some());
    let v6 = r.rows.iter().any(|x| x.ipv6.is_some());
    let paint = |text: String, width: usize| {
        let padded = format!("{text:<width$}");
        match (colour, text.starts_with("FAIL"), text.contains("lost"), text.starts_with("ok")) {
            (false, ..) => padded,
            (_, true, ..) => format!("\x1b[31;1m{padded}\x1b[0m"),
            (_, _, true, _) => format!("\x1b[33m{padded}\x1b[0m"),
            (_, _, _, true) => format!("\x1b[32m{padded}\x1b[0m"),
            _ => padded,
        }
    };
    let mut line = |title: &str, a: String, b: String| {
        let mut l = format!("{title:<30}");
        if v4 {
            l.push_str(&paint(a, 24));
        }
        if v6 {
            l.push_str(&paint(b, 24));
        }
        out.push_str(l.trim_end());
        out.push('\n');
    };
    line("CHECK", "IPv4".into(), "IPv6".into());
    for row in &r.rows {
        line(row.title, cell(row.ipv4.as_ref()), cell(row.ipv6.as_ref()));
    }
    let all = || r.rows.iter().flat_map(|x| x.ipv4.iter().chain(&x.ipv6));
    let (probes, good, tries): (usize, usize, u32) =
        all().fold((0, 0, 0), |a, c| (a.0 + c.probes, a.1 + c.good, a.2 + c.tries));
    let lost: u32 = all().map(|c| c.lost).sum();
    out.push_str(&format!(
        "{good} of {probes} paths work; {tries} packets or connections, {lost} lost; {:.1} s{}\n",
        r.ms as f64 / 1000.0,
        if r.own_pods { "; with pods of its own in namespace seaway-test" } else { "" }
    ));
    let shown = r.shown();
    for f in &shown {
        out.push_str(&wrap(&format!(
            "FAIL {} ({}): {} -> {} at {}: {}",
            f.check.title(),
            f.family,
            f.from,
            f.to,
            f.address,
            f.problem
        )));
        if let Some(s) = &f.stops {
            out.push_str(&wrap(&format!("     it stops on {s}")));
        }
    }
    if r.failures.len() > shown.len() {
        out.push_str(&format!("... and {} more (-o json has all)\n", r.failures.len() - shown.len()));
    }
    out
}

/// Breaks a line at blanks so that it fits; what follows is indented.
fn wrap(text: &str) -> String {
    let (mut out, mut width) = (String::new(), 0);
    let indent = text.len() - text.trim_start().len();
    out.push_str(&" ".repeat(indent));
    width += indent;
    for word in text.split_whitespace() {
        let long = word.chars().count();
        if width > indent.max(5) && width + 1 + long > COLUMNS {
            out.push_str("\n     ");
            width = 5;
        } else if width > indent {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += long;
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Client, Expect, Source};
    use super::*;
    use crate::prober::{Ask, Kind};

    fn result(check: Check, family: Family, said: Said) -> (Probe, Said) {
        let to = match family {
            Family::V4 => "10.0.0.1:80".parse().unwrap(),
            Family::V6 => "[fd00::1]:80".parse().unwrap(),
        };
        let expect = Expect { pods: vec!["s/b".into()], must: None, client: Client::Any };
        let ask = Ask { kind: Kind::Tcp, to, until: None };
        (Probe { check, family, source: Source::Pod("s/a".into()), label: "s/b:80".into(), ask, expect }, said)
    }

    #[test]
    fn the_table_fits_and_hides_no_loss() {
        let good = Said { tries: 1, answers: vec![("s/b".into(), "10.0.0.2".parse().unwrap())], ..Said::default() };
        let retried = Said { tries: 3, lost: 2, ..good.clone() };
        let lost = Said { tries: 3, lost: 3, error: Some("no answer".into()), ..Said::default() };
        let results = [
            result(Check::PodPodSameNode, Family::V4, good.clone()),
            result(Check::PodPodSameNode, Family::V6, retried),
            result(Check::NodePort, Family::V4, good),
            result(Check::NodePort, Family::V4, lost),
        ];
        let mut r = Report::new(&results, FamilySet { v4: true, v6: true });
        assert!(!r.ok && r.failures.len() == 1);
        r.failures[0].stops = Some(format!("node2: no route{}", " which is a long story".repeat(9)));
        let text = render(&r, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(text.contains("pod to pod, same node         ok   1/1                ok   1/1, 2 lost\n"), "{text}");
        assert!(text.contains("outside to NodePort           FAIL 1/2, 3 lost        -\n"), "{text}");
        assert!(text.contains("3 of 4 paths work; 8 packets or connections, 5 lost"), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains("s/a -> s/b:80 at 10.0.0.1:80: no answer (3 of 3 tries lost) it stops on node2"),
            "{text}"
        );
        let v4 = render(&Report::new(&results[..1], FamilySet { v4: true, v6: false }), true);
        assert!(!v4.contains("IPv6") && v4.contains("\x1b[32mok   1/1"));
    }
}
