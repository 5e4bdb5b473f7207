//! A place in a JSON object that knows its path, so that every complaint names its field.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::labels::Labels;
use crate::problem::Problem;

static NULL: Value = Value::Null;

/// Collects what is wrong with one object.
pub(crate) struct Complaints {
    object: String,
    found: RefCell<Vec<Problem>>,
}

/// Complaints of one object are cut here: a list of a thousand wrong entries says nothing more than one of 32.
const MOST: usize = 32;

impl Complaints {
    pub(crate) fn new(object: String) -> Self {
        Self { object, found: RefCell::default() }
    }

    fn add(&self, field: String, why: String) {
        let mut found = self.found.borrow_mut();
        if found.len() < MOST {
            found.push(Problem { object: self.object.clone(), field, why });
        }
    }

    pub(crate) fn into_vec(self) -> Vec<Problem> {
        self.found.into_inner()
    }
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

/// A value and the way to it.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    value: &'a Value,
    step: Step<'a>,
    complaints: &'a Complaints,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Step::Root => Ok(()),
            Step::Key(up, key) => {
                if !matches!(up.step, Step::Root) {
                    write!(f, "{up}.")?;
                }
                f.write_str(key)
            }
            Step::Index(up, i) => write!(f, "{up}[{i}]"),
        }
    }
}

impl<'a> At<'a> {
    pub(crate) fn root(value: &'a Value, complaints: &'a Complaints) -> Self {
        Self { value, step: Step::Root, complaints }
    }

    /// The member of an object; null when absent.
    pub(crate) fn get(&'a self, key: &'a str) -> At<'a> {
        let value = match self.value {
            Value::Object(m) => m.get(key).unwrap_or(&NULL),
            Value::Null => &NULL,
            _ => {
                self.wrong("an object");
                &NULL
            }
        };
        At { value, step: Step::Key(self, key), complaints: self.complaints }
    }

    /// The members of a list; none when absent.
    pub(crate) fn items(&'a self) -> impl Iterator<Item = At<'a>> {
        let list: &'a [Value] = match self.value {
            Value::Array(l) => l,
            Value::Null => &[],
            _ => {
                self.wrong("a list");
                &[]
            }
        };
        list.iter().enumerate().map(move |(i, value)| At {
            value,
            step: Step::Index(self, i),
            complaints: self.complaints,
        })
    }

    /// Records what is wrong here.
    pub(crate) fn bad(&self, why: impl Into<String>) {
        self.complaints.add(self.to_string(), why.into());
    }

    fn wrong(&self, want: &str) {
        let have = match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.bad(format!("must be {want}, is {have}"));
    }

    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    /// Text; `None` when absent or no text.
    pub(crate) fn str(&self) -> Option<&'a str> {
        match self.value {
            Value::String(s) => Some(s),
            Value::Null => None,
            _ => {
                self.wrong("text");
                None
            }
        }
    }

    pub(crate) fn boxed(&self) -> Box<str> {
        self.str().unwrap_or_default().into()
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        match self.value {
            Value::Bool(b) => Some(*b),
            Value::Null => None,
            _ => {
                self.wrong("true or false");
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn int(&self, lo: i64, hi: i64) -> Option<i64> {
        match self.value {
            Value::Number(n) => match n.as_i64().filter(|n| (lo..=hi).contains(n)) {
                Some(n) => Some(n),
                None => {
                    self.bad(format!("{n}: must be a whole number from {lo} to {hi}"));
                    None
                }
            },
            Value::Null => None,
            _ => {
                self.wrong("a number");
                None
            }
        }
    }

    /// A port, 1 to 65535.
    pub(crate) fn port(&self) -> Option<u16> {
        self.int(1, 65535).and_then(|n| u16::try_from(n).ok())
    }

    /// Text that is something; empty text is nothing, as in Go.
    pub(crate) fn parse<T: FromStr>(&self) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let s = self.str().filter(|s| !s.is_empty())?;
        match s.parse() {
            Ok(v) => Some(v),
            Err(e) => {
                self.bad(e.to_string());
                None
            }
        }
    }

    /// An IP address.
    pub(crate) fn ip(&self) -> Option<std::net::IpAddr> {
        let s = self.str().filter(|s| !s.is_empty())?;
        let ip = s.parse().ok();
        if ip.is_none() {
            self.bad(format!("{s:?} is no IP address"));
        }
        ip
    }

    /// An object of texts.
    pub(crate) fn labels(&'a self) -> Labels {
        match self.value {
            Value::Object(m) => m.keys().filter_map(|k| self.get(k).str().map(|v| (k.as_str(), v))).collect(),
            Value::Null => Labels::default(),
            _ => {
                self.wrong("an object of texts");
                Labels::default()
            }
        }
    }
}
