//! Draws.

use super::*;
