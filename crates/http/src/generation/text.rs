//! The text alone, as it comes: the formatter `none`.

use drivetrain_host::{Event, HostError};

use super::stream::Printer;
use crate::failure::ApiError;

/// Writes text.
pub(crate) struct BareText;

impl Printer for BareText {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Token { text, .. } | Event::Done { text, .. } => {
                out.extend_from_slice(text.as_bytes());
            }
            _ => {}
        }
    }

    fn end(&mut self, _: &mut Vec<u8>) {}

    /// As custom handlers' streams end: with the bare text of the error.
    fn failed(&mut self, error: HostError, out: &mut Vec<u8>) {
        out.extend_from_slice(ApiError::of_task(error).message.as_bytes());
    }
}
