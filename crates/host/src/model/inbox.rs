//! The bounded queue between the front ends and a model's thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Jobs on their way to a model's thread.
#[derive(Debug)]
pub(crate) struct Inbox<J> {
    state: Mutex<State<J>>,
    wake: Condvar,
    n_waiting: Arc<AtomicUsize>,
    capacity: usize,
}

#[derive(Debug)]
struct State<J> {
    jobs: VecDeque<J>,
    orders: Orders,
}

/// What the model's thread is told apart from jobs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    /// Everything ends by then.
    pub(crate) drain: Option<Instant>,
    /// No more jobs come: end when the last one is done.
    pub(crate) closed: bool,
}

impl Orders {
    /// Whether everything should have ended by now.
    pub(crate) fn is_cut_off(self) -> bool {
        self.drain.is_some_and(|deadline| deadline <= Instant::now())
    }
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
}

/// Places in the queue, one a sequence, held until the whole job has started or ended.
#[derive(Debug)]
pub(crate) struct Place {
    n_waiting: Arc<AtomicUsize>,
    n_held: usize,
    capacity: usize,
}

impl Place {
    /// Takes places for `n_sequences` in all; alone, a job may have more than there are.
    pub(crate) fn widen(&mut self, n_sequences: usize) -> Result<(), Refusal> {
        let n_more = n_sequences.saturating_sub(self.n_held);
        let more = |n: usize| {
            let sum = n.saturating_add(n_more);
            (sum <= self.capacity || n <= self.n_held).then_some(sum)
        };
        self.n_waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Refusal::Full)?;
        self.n_held += n_more;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.n_waiting.fetch_sub(self.n_held, Ordering::Relaxed);
    }
}

impl<J> Inbox<J> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State { jobs: VecDeque::new(), orders: Orders::default() }),
            wake: Condvar::new(),
            n_waiting: Arc::default(),
            capacity,
        }
    }

    /// Most sequences that wait.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes a place, if there is one. A job of several sequences widens it.
    pub(crate) fn reserve(&self) -> Result<Place, Refusal> {
        let more = |n: usize| (n < self.capacity).then_some(n + 1);
        match self.n_waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Place {
                n_waiting: Arc::clone(&self.n_waiting),
                n_held: 1,
                capacity: self.capacity,
            }),
            Err(_) => Err(Refusal::Full),
        }
    }

    /// Hands a job over; it comes back if the model takes no more.
    pub(crate) fn push(&self, job: J) -> Result<(), J> {
        let mut state = self.lock();
        if state.orders.closed {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Moves all jobs to `into`, without waiting.
    pub(crate) fn take_all(&self, into: &mut Vec<J>) -> Orders {
        let mut state = self.lock();
        into.extend(state.jobs.drain(..));
        state.orders
    }

    /// What the model's thread is told.
    pub(crate) fn orders(&self) -> Orders {
        self.lock().orders
    }

    /// Waits for a job, an order, or for `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        let state = self.lock();
        if state.jobs.is_empty() && !state.orders.closed {
            drop(self.wake.wait_timeout(state, limit));
        }
    }

    /// The first job, waited for until `limit`.
    pub(crate) fn take_one(&self, limit: Duration) -> (Option<J>, Orders) {
        let mut state = self.lock();
        if state.jobs.is_empty() && !state.orders.closed {
            state = match self.wake.wait_timeout(state, limit) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        (state.jobs.pop_front(), state.orders)
    }

    /// Everything ends by `deadline`.
    pub(crate) fn drain(&self, deadline: Instant) {
        let mut state = self.lock();
        let old = state.orders.drain.unwrap_or(deadline);
        state.orders.drain = Some(old.min(deadline));
        drop(state);
        self.wake.notify_all();
    }

    /// No more jobs come.
    pub(crate) fn close(&self) {
        self.lock().orders.closed = true;
        self.wake.notify_all();
    }

    /// No more jobs come, and nobody takes those that are here: they are dropped.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.orders.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(jobs);
        self.wake.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_bound_what_waits() {
        let inbox = Inbox::<u32>::new(2);
        let places = [inbox.reserve().unwrap(), inbox.reserve().unwrap()];
        assert_eq!(inbox.reserve().unwrap_err(), Refusal::Full);
        drop(places);
        assert!(inbox.reserve().is_ok());
    }

    #[test]
    fn sequences_take_places_too() {
        let inbox = Inbox::<u32>::new(4);
        let mut large = inbox.reserve().unwrap();
        large.widen(9).unwrap();
        assert_eq!(inbox.reserve().unwrap_err(), Refusal::Full);
        drop(large);
        let mut first = inbox.reserve().unwrap();
        first.widen(2).unwrap();
        let mut second = inbox.reserve().unwrap();
        assert_eq!(second.widen(3), Err(Refusal::Full));
        assert_eq!(second.widen(2), Ok(()));
        drop((first, second));
        assert_eq!(inbox.n_waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_closed_inbox_gives_jobs_back_and_keeps_earlier_ones() {
        let inbox = Inbox::new(2);
        inbox.push(1).unwrap();
        inbox.close();
        assert_eq!(inbox.push(2), Err(2));
        let mut jobs = Vec::new();
        assert!(inbox.take_all(&mut jobs).closed);
        assert_eq!(jobs, [1]);
        assert!(inbox.take_one(Duration::from_secs(60)).0.is_none());
    }
}
