//! The page for operators, docs/runtimes.md: the tests run what it says.

/// The block of a section that follows the line which ends with the file's name in backticks and a colon.
///
/// # Panics
/// When the page has no such block.
#[must_use]
pub fn file(section: &str, path: &str) -> String {
    block(include_str!("../../../docs/runtimes.md"), section, path)
        .unwrap_or_else(|| panic!("docs/runtimes.md, section {section:?}, has no block after a line `{path}`:"))
}

fn block(page: &str, section: &str, path: &str) -> Option<String> {
    let lines = page.lines().skip_while(|l| l.strip_prefix("## ") != Some(section)).skip(1);
    let lines = lines.take_while(|l| !l.starts_with("## "));
    let mut lines = lines.skip_while(|l| !l.ends_with(&format!("`{path}`:"))).skip(1);
    lines.find(|l| l.starts_with("```"))?;
    Some(lines.take_while(|l| !l.starts_with("```")).flat_map(|l| [l, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::block;

    #[test]
    fn the_block_of_its_section_is_found() {
        let page = "## a\n`/x`:\n```\none\n```\n## b\nAs `/x`:\n\n```toml\ntwo\n\nthree\n```\n`/y`:\n```\nfour\n```\n";
        assert_eq!(block(page, "b", "/x").as_deref(), Some("two\n\nthree\n"));
        assert_eq!(block(page, "b", "/y").as_deref(), Some("four\n"));
        assert_eq!(block(page, "a", "/y"), None);
        assert_eq!(block(page, "c", "/x"), None);
    }
}
