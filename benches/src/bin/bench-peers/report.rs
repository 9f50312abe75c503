//! The result as a page and as data.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use drivetrain_benches::{Task, Work};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::reads::Reads;
use crate::rounds::{Outcome, Times};
use crate::statistics::Spread;

/// All that there is to tell.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) n_rounds: usize,
    pub(crate) python: String,
    pub(crate) machine: Machine,
    /// Cores that other programs kept busy before a model's turn.
    pub(crate) n_busy: f64,
    /// Who could not take part, and why.
    pub(crate) missing: Vec<(String, String)>,
    pub(crate) sections: Vec<Section>,
}

/// One model.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) model: &'static str,
    pub(crate) works: Vec<(&'static str, Work)>,
    /// The limit that reads set, where a part of the weights is on the disk.
    pub(crate) reads: Option<Reads>,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Outcome {
    fn label(&self) -> String {
        let again =
            if self.sitting > 0 { format!(", group {}", self.sitting + 1) } else { String::new() };
        format!("{} {}{again}", self.name, self.format.name())
    }
}

impl Section {
    /// The yardstick that was in memory beside `outcome`.
    fn yardstick(&self, outcome: &Outcome) -> Option<&Outcome> {
        self.outcomes.iter().find(|one| one.is_yardstick() && one.sitting == outcome.sitting)
    }

    /// How many times as fast as `other` `outcome` was, over the rounds of a work.
    fn ratio(outcome: &Outcome, other: &Outcome, work_idx: usize) -> Option<Spread> {
        let (of, by) = (outcome.works.get(work_idx)?, other.works.get(work_idx)?);
        if of.reason.is_some() || by.reason.is_some() {
            return None;
        }
        Spread::of(by.seconds.iter().zip(&of.seconds).map(|(other, own)| other / own))
    }

    fn work(&self, out: &mut String, work_idx: usize) {
        let (name, work) = &self.works[work_idx];
        let rate = if work.task == Task::Generate { "new tokens/s" } else { "tokens/s" };
        let _ = writeln!(out, "\n### {name}\n\n{work}.\n");
        let _ = writeln!(
            out,
            "| who | ms | quartiles | {rate} | times torch f32 | quartiles | agrees |\n\
             | --- | --: | --: | --: | --: | --: | --: |"
        );
        let mut absent = Vec::new();
        for outcome in &self.outcomes {
            let Some(times) = outcome.works.get(work_idx) else { continue };
            let spread = Spread::of(times.seconds.iter().copied());
            let (Some(spread), None) = (spread, &times.reason) else {
                absent.push((outcome.label(), times.reason.clone().unwrap_or_default()));
                continue;
            };
            let yardstick = self.yardstick(outcome);
            let ratio = yardstick.and_then(|yard| Self::ratio(outcome, yard, work_idx));
            let _ = writeln!(
                out,
                "| {} | {:.1} | {:.1} to {:.1} | {:.1} | {} | {} |",
                outcome.label(),
                spread.median * 1e3,
                spread.low * 1e3,
                spread.high * 1e3,
                work.n_counted() as f64 / spread.median,
                cells(ratio),
                agreement(times)
            );
        }
        self.pairs(out, work_idx);
        self.share_of_reads(out, work_idx);
        for (who, why) in absent {
            let _ = writeln!(out, "\nNot timed: {who}: {why}");
        }
    }

    /// How near who generates comes to what reading the weights for each token takes.
    fn share_of_reads(&self, out: &mut String, work_idx: usize) {
        let (_, work) = &self.works[work_idx];
        let Some(reads) = self.reads.filter(|_| work.task == Task::Generate) else { return };
        let offloads = self.outcomes.iter().filter(|one| !one.is_yardstick());
        let shares: Vec<String> = offloads
            .filter_map(|outcome| {
                let times = outcome.works.get(work_idx).filter(|times| times.reason.is_none())?;
                let seconds = Spread::of(times.seconds.iter().copied())?.median;
                Some(format!("{} {:.2}", outcome.label(), reads.share(work.n_new, seconds)))
            })
            .collect();
        if !shares.is_empty() {
            let _ = writeln!(
                out,
                "\nOf the tokens that reading alone would allow, {:.2} GB for each at {:.1} GB/s, \
                 prompt included: {}.",
                reads.bytes_per_pass as f64 / 1e9,
                reads.bytes_per_second / 1e9,
                shares.join(", ")
            );
        }
    }

    /// Each engine against each library of its format.
    fn pairs(&self, out: &mut String, work_idx: usize) {
        let mut rows = String::new();
        for engine in self.outcomes.iter().filter(|one| one.is_engine) {
            let fits = |other: &&Outcome| {
                !other.is_engine && other.format == engine.format && other.sitting == engine.sitting
            };
            for peer in self.outcomes.iter().filter(fits) {
                if let Some(ratio) = Self::ratio(engine, peer, work_idx) {
                    let (engine, peer) = (engine.label(), peer.label());
                    let _ = writeln!(rows, "| {engine} | {peer} | {} |", cells(Some(ratio)));
                }
            }
        }
        if !rows.is_empty() {
            let head =
                "| engine | against | times as fast | quartiles |\n| --- | --- | --: | --: |";
            let _ = writeln!(out, "\n{head}\n{}", rows.trim_end());
        }
    }

    fn memory(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n### Loading\n\n| who | version | load s | peak MiB | cosine |\n\
             | --- | --- | --: | --: | --: |"
        );
        for outcome in &self.outcomes {
            let peak = outcome.peak_bytes.map_or("".to_owned(), |n| format!("{}", n >> 20));
            let cosine = outcome.cosine.map_or("".to_owned(), |found| format!("{found:.5}"));
            let _ = writeln!(
                out,
                "| {} | {} | {:.2} | {peak} | {cosine} |",
                outcome.label(),
                outcome.version,
                outcome.load_seconds
            );
        }
        for outcome in &self.outcomes {
            for warning in &outcome.warnings {
                let _ = writeln!(out, "\nWarning of {}: {warning}", outcome.label());
            }
        }
    }
}

impl Report {
    /// Whether other programs took so much that the times mean little: threads that wait for each other
    /// suffer many times what they lose.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.n_busy > 0.2
    }

    /// Writes `PATH.md` and `PATH.json`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // What a name holds may look like an ending.
        let named = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            std::path::PathBuf::from(name)
        };
        let data = serde_json::to_string_pretty(&self.json())? + "\n";
        fs::write(named(".json"), data)
            .and_then(|()| fs::write(named(".md"), self.markdown()))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The page.
    pub(crate) fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut out =
            format!("# Engines against other libraries: {}, {}\n\n", self.date, machine.cpu);
        let _ = writeln!(
            out,
            "`{}` at commit {}.\n\n\
             {} cores of {}, {:.0} GiB of memory, threads of each entrant: {}; instruction set {} ({}). \
             Measured with those threads: {:.1} GB/s read from memory, {:.0} GFLOP/s in f32. {}.\n",
            self.command,
            self.commit,
            machine.n_cores,
            machine.cpu,
            machine.memory_bytes as f64 / f64::from(1 << 30),
            machine.n_threads,
            machine.isa,
            machine.flags.join(" "),
            machine.read_bytes_per_second / 1e9,
            machine.f32_per_second / 1e9,
            self.python
        );
        let _ = writeln!(
            out,
            "Times are medians of {} rounds; in each round everyone did the work once, one after the \
             other. Ratios are medians of the rounds' ratios, and above 1 means faster. Models have the \
             shapes of their names and random weights. \"Agrees\" is what was computed against torch's \
             f32: the cosine of hidden states or logits, or the share of tokens that are equal up to the \
             first that differs. Who does not agree is not timed. Peak memory includes pages of mapped \
             files. Entrants of another group were not in memory together, and have a yardstick of \
             their own.",
            self.n_rounds
        );
        if self.is_disturbed() {
            let _ = writeln!(
                out,
                "\n**Other programs kept {:.1} cores busy: the times mean little.**",
                self.n_busy
            );
        }
        if !self.missing.is_empty() {
            let _ = writeln!(out, "\nLeft out:\n");
            for (who, why) in &self.missing {
                let _ = writeln!(out, "- {who}: {why}");
            }
        }
        for section in &self.sections {
            let _ = writeln!(out, "\n## {}", section.model);
            (0..section.works.len()).for_each(|idx| section.work(&mut out, idx));
            section.memory(&mut out);
        }
        out
    }

    fn json(&self) -> Value {
        let sections: Vec<Value> = self
            .sections
            .iter()
            .map(|section| {
                let works: Vec<&str> = section.works.iter().map(|(name, _)| *name).collect();
                let outcomes: Vec<Value> =
                    section.outcomes.iter().map(|one| outcome(one, &works)).collect();
                json!({ "model": section.model, "reads": section.reads, "entrants": outcomes })
            })
            .collect();
        let missing: Vec<Value> =
            self.missing.iter().map(|(who, why)| json!({ "who": who, "why": why })).collect();
        json!({
            "date": self.date,
            "commit": self.commit,
            "command": self.command,
            "rounds": self.n_rounds,
            "python": self.python,
            "machine": self.machine,
            "busy_cores_before": self.n_busy,
            "left_out": missing,
            "models": sections,
        })
    }
}

fn cells(ratio: Option<Spread>) -> String {
    let text = |r: Spread| format!("{:.2} | {:.2} to {:.2}", r.median, r.low, r.high);
    ratio.map_or_else(|| " | ".to_owned(), text)
}

fn agreement(times: &Times) -> String {
    times.agreement.map_or_else(String::new, |found| format!("{found:.4}"))
}

fn outcome(outcome: &Outcome, names: &[&str]) -> Value {
    let works: serde_json::Map<String, Value> = names
        .iter()
        .zip(&outcome.works)
        .map(|(name, times)| {
            let value = json!({
                "seconds": times.seconds,
                "agreement": times.agreement,
                "reason": times.reason,
            });
            ((*name).to_owned(), value)
        })
        .collect();
    json!({
        "name": outcome.name,
        "format": outcome.format.name(),
        "is_engine": outcome.is_engine,
        "group": outcome.sitting + 1,
        "version": outcome.version,
        "load_seconds": outcome.load_seconds,
        "warnings": outcome.warnings,
        "peak_bytes": outcome.peak_bytes,
        "cosine": outcome.cosine,
        "fault": outcome.fault,
        "work": works,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrants::{Format, YARDSTICK};

    fn outcome(name: &'static str, is_engine: bool, seconds: &[f64]) -> Outcome {
        let times = Times { seconds: seconds.to_vec(), agreement: Some(1.0), reason: None };
        Outcome {
            name,
            format: Format::F32,
            is_engine,
            sitting: 0,
            version: format!("{name} 1"),
            load_seconds: 0.5,
            warnings: Vec::new(),
            peak_bytes: Some(3 << 20),
            cosine: None,
            fault: None,
            works: vec![times],
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let works = vec![("decode", "generate:1+10".parse().unwrap())];
        let mut failed = outcome("slow", false, &[]);
        failed.works[0].reason = Some("cosine 0.1".to_owned());
        let outcomes = vec![
            outcome(YARDSTICK, false, &[2.0, 8.0, 2.0]),
            outcome("fast", true, &[1.0, 4.0, 1.0]),
            failed,
        ];
        let section = Section { model: "m", works, reads: None, outcomes };
        let mut page = String::new();
        section.work(&mut page, 0);
        assert!(
            page.contains("| fast f32 | 1000.0 | 1000.0 to 2500.0 | 10.0 | 2.00 | 2.00 to 2.00 |")
        );
        assert!(page.contains("| fast f32 | torch f32 | 2.00 | 2.00 to 2.00 |"), "{page}");
        assert!(page.contains("Not timed: slow f32: cosine 0.1"), "{page}");
    }
}
