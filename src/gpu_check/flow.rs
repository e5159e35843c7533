//! Batches through an engine as a worker runs them: as many begun as the engine holds.

use std::collections::VecDeque;

use kernels::{Batch, Embeddings, Engine, EngineError, Progress};

/// Runs what `next` gives and hands each batch's embeddings to `done`, in order.
///
/// # Errors
/// The engine's first.
pub(super) fn stream<'a>(
    engine: &mut dyn Engine,
    mut next: impl FnMut() -> Option<&'a Batch>,
    mut done: impl FnMut(&'a Batch, Embeddings) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let progress = Progress::default();
    let depth = engine.depth();
    if depth <= 1 {
        while let Some(batch) = next() {
            let embeddings = engine.run(batch, &progress)?;
            done(batch, embeddings)?;
        }
        return Ok(());
    }
    let mut begun = VecDeque::with_capacity(depth);
    loop {
        while begun.len() < depth {
            let Some(batch) = next() else { break };
            engine.begin(batch, false, &progress)?;
            begun.push_back(batch);
        }
        let Some(batch) = begun.pop_front() else { return Ok(()) };
        let embeddings = engine.finish(&progress)?;
        done(batch, embeddings)?;
    }
}

#[cfg(test)]
mod tests {
    use kernels::EngineDescription;

    use super::*;

    /// Answers each batch with its token count; begun batches are held.
    struct Deep(EngineDescription, VecDeque<usize>, usize);

    impl Engine for Deep {
        fn description(&self) -> &EngineDescription {
            &self.0
        }

        fn run(&mut self, batch: &Batch, _: &Progress) -> Result<Embeddings, EngineError> {
            assert_eq!(self.2, 1, "an engine that holds several is given several");
            Ok(Embeddings { hidden: 1, values: vec![batch.token_count() as f32] })
        }

        fn depth(&self) -> usize {
            self.2
        }

        fn begin(&mut self, batch: &Batch, _: bool, _: &Progress) -> Result<(), EngineError> {
            self.1.push_back(batch.token_count());
            assert!(self.1.len() <= self.2);
            Ok(())
        }

        fn finish(&mut self, _: &Progress) -> Result<Embeddings, EngineError> {
            let tokens = self.1.pop_front().ok_or(EngineError::Batch("none has begun".into()))?;
            Ok(Embeddings { hidden: 1, values: vec![tokens as f32] })
        }
    }

    #[test]
    fn every_batch_is_answered_in_order_whatever_the_depth() {
        let batches: Vec<Batch> = (1..=5)
            .map(|residues| {
                let mut batch = Batch::default();
                batch.push(0, &b"MKVLA"[..residues], 1);
                batch
            })
            .collect();
        for depth in [1, 2, 3, 8] {
            let description = EngineDescription {
                name: "test".into(),
                hidden: 1,
                weights_bytes: 0,
                bytes_per_token: 0,
                token_budget: None,
                slots: 1,
            };
            let mut engine = Deep(description, VecDeque::new(), depth);
            let mut left = batches.iter();
            let mut got = Vec::new();
            stream(
                &mut engine,
                || left.next(),
                |batch, embeddings| {
                    assert_eq!(embeddings.values, [batch.token_count() as f32]);
                    got.push(batch.token_count());
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(got, [3, 4, 5, 6, 7], "depth {depth}");
        }
    }
}
