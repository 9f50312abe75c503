//! `summarization`: as `text2text-generation`; only the reply has another name.

use super::context::{Prepared, TaskContext};
use super::{Task, TaskReply, TaskRequest, text2text_generation};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    text2text_generation::prepare(context, request, params)
}

pub(super) fn reply(
    context: &TaskContext,
    prepared: &Prepared,
    outcomes: Vec<Outcome>,
) -> Result<TaskReply, HostError> {
    text2text_generation::reply_as(Task::Summarization, context, prepared, outcomes)
}
