//! The HTTP front ends over a real host with engines made for the purpose: the router alone, then
//! real sockets.

#![expect(clippy::unwrap_used, reason = "a test that can not go on should stop with the reason")]

mod bodies;
mod engines;
mod errors;
mod generation;
mod live;
mod metrics;
mod openai;
mod raw;
mod refusals;
mod routes;
mod streams;
mod support;
