//! The HTTP front ends over a real host with engines made for the purpose: the router alone, then
//! real sockets.

mod bodies;
mod engines;
mod errors;
mod live;
mod raw;
mod routes;
mod support;
