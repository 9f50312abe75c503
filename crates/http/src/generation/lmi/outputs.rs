//! `option.enable_streaming` without a rolling batch: a line each step, with the new text of every
//! input.

use std::collections::VecDeque;

use drivetrain_host::{Event, HostError};
use serde::Serialize;

use crate::failure::ApiError;
use crate::generation::stream::{Framing, Printer};

#[derive(Serialize)]
struct Step<'a> {
    outputs: &'a [String],
}

/// Writes `{"outputs": [..]}`. An input that has ended says nothing more.
pub(crate) struct Outputs {
    /// By input: the texts of its steps that no line has, and whether it has ended.
    inputs: Vec<(VecDeque<String>, bool)>,
}

impl Outputs {
    /// For so many inputs.
    pub(crate) fn new(n_inputs: usize) -> Self {
        Self { inputs: vec![(VecDeque::new(), false); n_inputs] }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.inputs.iter().all(|(texts, is_over)| *is_over || !texts.is_empty())
            && self.inputs.iter().any(|(texts, _)| !texts.is_empty())
        {
            let step: Vec<String> = self
                .inputs
                .iter_mut()
                .map(|(texts, _)| texts.pop_front().unwrap_or_default())
                .collect();
            Framing::Lines.frame(out, &Step { outputs: &step });
        }
    }
}

impl Printer for Outputs {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Token { prompt, text, .. } => {
                if let Some((texts, _)) = self.inputs.get_mut(prompt) {
                    texts.push_back(text);
                }
            }
            Event::Done { text, completion } => {
                if let Some((texts, is_over)) = self.inputs.get_mut(completion.prompt) {
                    if !text.is_empty() {
                        texts.push_back(text);
                    }
                    *is_over = true;
                }
            }
            _ => {}
        }
        self.flush(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.flush(out);
    }

    /// As the Python engine ends a stream: with the bare text.
    fn failed(&mut self, error: HostError, out: &mut Vec<u8>) {
        self.flush(out);
        out.extend_from_slice(ApiError::of_task(error).message.as_bytes());
    }
}
