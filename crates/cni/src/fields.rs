//! Reading JSON objects field by field, so that every error names the field. Unknown fields are left alone: that is the
//! reference plugins' way, and old configurations have them.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::{Code, Error};

/// A wrong configuration: code 7.
pub fn bad(what: impl Display) -> Error {
    Error::new(Code::InvalidConfig, format!("invalid network configuration: {what}"))
}

/// A value in an error: not more of it than fits a line.
pub(crate) fn shown(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(80) {
        Some((i, _)) => format!("{}...", &text[..i]),
        None => text,
    }
}

/// An object and where it stands.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Fields<'a> {
    /// The object that stands at `at`; empty for the configuration itself.
    pub fn new(map: &'a Map<String, Value>, at: impl Into<String>) -> Self {
        Self { map, at: at.into() }
    }

    /// The full name of a field.
    #[must_use]
    pub fn name(&self, field: &str) -> String {
        if self.at.is_empty() { field.into() } else { format!("{}.{field}", self.at) }
    }

    /// The value as it is; JSON's null counts as absent. A field is known by its letters in any case when none has the
    /// exact ones, as Go's decoder knows it: containerd's `runtimeConfig` says `HostPort`, `IngressRate`, `Subnet`.
    #[must_use]
    pub fn value(&self, field: &str) -> Option<&'a Value> {
        let other = || self.map.iter().find(|(k, _)| k.eq_ignore_ascii_case(field)).map(|(_, v)| v);
        self.map.get(field).or_else(other).filter(|v| !v.is_null())
    }

    fn wrong(&self, field: &str, v: &Value, want: impl Display) -> Error {
        bad(format!("{} is {}: {want} is needed", self.name(field), shown(v)))
    }

    /// A text.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>, Error> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(self.wrong(field, v, "a text")),
        }
    }

    /// A text that is not empty.
    ///
    /// # Errors
    /// Code 7 when it is something else, absent or empty.
    pub fn needed(&self, field: &str) -> Result<&'a str, Error> {
        let text = self.text(field)?.filter(|t| !t.is_empty());
        text.ok_or_else(|| bad(format!("{} is missing", self.name(field))))
    }

    /// True or false; false when absent.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn flag(&self, field: &str) -> Result<bool, Error> {
        Ok(self.choice(field)?.unwrap_or(false))
    }

    /// True, false or absent.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn choice(&self, field: &str) -> Result<Option<bool>, Error> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err(self.wrong(field, v, "true or false")),
        }
    }

    /// A whole number within a range.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn number(&self, field: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Error> {
        let Some(v) = self.value(field) else { return Ok(None) };
        let n = v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n));
        let want = || format!("a whole number from {} to {}", range.start(), range.end());
        n.map(Some).ok_or_else(|| self.wrong(field, v, want()))
    }

    /// A whole number of 64 bits.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn long(&self, field: &str) -> Result<Option<u64>, Error> {
        let Some(v) = self.value(field) else { return Ok(None) };
        v.as_u64().map(Some).ok_or_else(|| self.wrong(field, v, "a whole number, not negative,"))
    }

    /// A text that parses; an empty one counts as absent.
    ///
    /// # Errors
    /// Code 7 with the parser's words.
    pub fn parsed<T: FromStr>(&self, field: &str) -> Result<Option<T>, Error>
    where
        T::Err: Display,
    {
        match self.text(field)? {
            None | Some("") => Ok(None),
            Some(t) => t.parse().map(Some).map_err(|e| bad(format!("{} is {t:?}: {e}", self.name(field)))),
        }
    }

    /// A list; empty when absent.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn list(&self, field: &str) -> Result<&'a [Value], Error> {
        match self.value(field) {
            None => Ok(&[]),
            Some(Value::Array(a)) => Ok(a),
            Some(v) => Err(self.wrong(field, v, "a list")),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn texts(&self, field: &str) -> Result<Vec<String>, Error> {
        let one = |v: &Value| v.as_str().map(String::from).ok_or_else(|| self.wrong(field, v, "a text"));
        self.list(field)?.iter().map(one).collect()
    }

    /// A list of texts that parse.
    ///
    /// # Errors
    /// Code 7 with the place in the list and the parser's words.
    pub fn parsed_list<T: FromStr>(&self, field: &str) -> Result<Vec<T>, Error>
    where
        T::Err: Display,
    {
        let one =
            |(i, t): (usize, String)| t.parse().map_err(|e| bad(format!("{}[{i}] is {t:?}: {e}", self.name(field))));
        self.texts(field)?.into_iter().enumerate().map(one).collect()
    }

    /// An object.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn object(&self, field: &str) -> Result<Option<Fields<'a>>, Error> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(m)) => Ok(Some(Fields::new(m, self.name(field)))),
            Some(v) => Err(self.wrong(field, v, "an object")),
        }
    }

    /// An object as it is.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn map(&self, field: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        Ok(self.object(field)?.map(|f| f.map))
    }

    /// A list of objects.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn objects(&self, field: &str) -> Result<Vec<Fields<'a>>, Error> {
        let one = |(i, v): (usize, &'a Value)| match v {
            Value::Object(m) => Ok(Fields::new(m, format!("{}[{i}]", self.name(field)))),
            v => Err(self.wrong(field, v, "a list of objects")),
        };
        self.list(field)?.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_known_in_any_case_but_its_own_comes_first() {
        let v = json!({"HostPort": 80, "hostIP": "10.0.0.1", "HOSTIP": "10.0.0.2", "Protocol": null});
        let f = Fields::new(v.as_object().unwrap(), "portMappings[0]");
        assert_eq!(f.number("hostPort", 1..=65535).unwrap(), Some(80));
        assert_eq!(f.text("hostIP").unwrap(), Some("10.0.0.1"));
        assert_eq!(f.text("protocol").unwrap(), None);
    }
}
