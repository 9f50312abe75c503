//! The targets on their seeds, on their corpora and on random inputs. `BOLERO_RANDOM_ITERATIONS` and
//! `BOLERO_RANDOM_TEST_TIME_MS` let the last go on for longer.

use std::time::Duration;

use alloc_tracker::Allocator;
use drivetrain_fuzz::{Edit, TARGETS, apply, target};

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

/// Random inputs of a target where nothing asks for more.
const N_RANDOM: usize = 100;

/// Longest time for a target's random inputs where nothing asks for more.
const TIME: Duration = Duration::from_secs(20);

/// The seeds as they are.
fn replay(name: &str) {
    let target = target(name);
    let seeds = target.seeds();
    assert!(!seeds.is_empty(), "{name} has nothing to start from");
    for (path, input) in seeds {
        let spent = target.check(&input);
        println!("{}: {spent:?}", path.display());
    }
}

/// The seeds with changes.
fn change(name: &str) {
    let target = target(name);
    let seeds: Vec<Vec<u8>> = target.seeds().into_iter().map(|(_, bytes)| bytes).collect();
    bolero::check!()
        .with_test_time(TIME)
        .with_iterations(N_RANDOM)
        .with_generator((
            bolero::produce::<u8>(),
            bolero::produce::<Vec<Edit>>().with().len(1usize..8),
        ))
        .for_each(|(seed, edits)| {
            target.check(&apply(&seeds, *seed, edits));
        });
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            /// Any bytes: what libFuzzer starts from.
            #[test]
            fn $name() {
                let target = target(stringify!($name));
                bolero::check!()
                    .with_test_time(TIME)
                    .with_iterations(N_RANDOM)
                    .for_each(|input: &[u8]| {
                        target.check(input);
                    });
            }
        )*

        /// Seeds and corpora, each file once.
        mod replayed {
            $(#[test] fn $name() { super::replay(stringify!($name)); })*
        }

        /// Seeds and corpora with changes.
        mod changed {
            $(#[test] fn $name() { super::change(stringify!($name)); })*
        }

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    safetensors pickle gguf weights_index model_config
    tokenizer_json sentencepiece vocabularies tokenizer_settings
    archive properties
}

#[test]
fn every_target_is_tested() {
    let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(NAMES, all);
}
