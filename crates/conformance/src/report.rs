//! What the suite found.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The engine does what it has to; a remark if there is one.
    Passed(Option<String>),
    /// It does not: what was found, and what is wanted.
    Failed(String),
    /// The case does not apply, or could not be run: why.
    Skipped(String),
}

/// One case of the suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What the engine has to do.
    pub name: &'static str,
    /// Whether it does.
    pub outcome: Outcome,
    /// How long the case took.
    pub took: Duration,
}

/// What the suite found. Its `Display` is a table with a line for each case and a summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The engine's name and version.
    pub engine: String,
    /// The model that was loaded, if one was.
    pub model_dir: Option<PathBuf>,
    /// The seed that repeats the run.
    pub seed: u64,
    /// The cases in the order they ran.
    pub cases: Vec<Case>,
}

impl Report {
    /// Whether no case failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The cases that failed, with their reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.cases.iter().filter_map(|case| match &case.outcome {
            Outcome::Failed(reason) => Some((case.name, reason.as_str())),
            _ => None,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.engine)?;
        match &self.model_dir {
            Some(dir) => write!(f, "model {}", dir.display())?,
            None => f.write_str("no model")?,
        }
        writeln!(f, ", seed {}", self.seed)?;
        let width = self.cases.iter().map(|case| case.name.chars().count()).max().unwrap_or(0);
        for case in &self.cases {
            let (mark, text) = match &case.outcome {
                Outcome::Passed(remark) => ('✓', remark.as_deref().unwrap_or_default()),
                Outcome::Failed(reason) => ('✗', reason.as_str()),
                Outcome::Skipped(reason) => ('-', reason.as_str()),
            };
            let line = format!("{mark} {:width$}  {text}", case.name);
            writeln!(f, "{}", line.trim_end())?;
        }
        let count = |wanted: fn(&Outcome) -> bool| {
            self.cases.iter().filter(|case| wanted(&case.outcome)).count()
        };
        let took: Duration = self.cases.iter().map(|case| case.took).sum();
        write!(
            f,
            "{} passed, {} failed, {} skipped in {:.1} s",
            count(|outcome| matches!(outcome, Outcome::Passed(_))),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            took.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_case_and_a_summary() {
        let case = |name, outcome| Case { name, outcome, took: Duration::ZERO };
        let report = Report {
            engine: "mine 1.0.0".into(),
            model_dir: Some("models/tiny".into()),
            seed: 7,
            cases: vec![
                case("info is sane", Outcome::Passed(None)),
                case("release frees", Outcome::Failed("1 sequence is left".into())),
                case("requests", Outcome::Skipped("a token model".into())),
            ],
        };
        let expect = "mine 1.0.0, model models/tiny, seed 7\n\
                      ✓ info is sane\n\
                      ✗ release frees  1 sequence is left\n\
                      - requests       a token model\n\
                      1 passed, 1 failed, 1 skipped in 0.0 s";
        assert_eq!(report.to_string(), expect);
        assert!(!report.passed());
    }
}
