//! The published networks, by name.

use super::ModelConfig;
use crate::alphabet::VOCAB;

/// Name and shape of a network of the ESM-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called for its parameters.
    pub name: &'static str,
    /// What its weights are called where they are published.
    pub published: &'static str,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream and of an embedding.
    pub hidden: usize,
    /// Attention heads; each is `hidden / heads` wide.
    pub heads: usize,
}

impl Shape {
    /// All that were published, smallest first.
    pub const PUBLISHED: [Self; 6] = [
        Self { name: "8M", published: "esm2_t6_8M_UR50D", layers: 6, hidden: 320, heads: 20 },
        Self { name: "35M", published: "esm2_t12_35M_UR50D", layers: 12, hidden: 480, heads: 20 },
        Self { name: "150M", published: "esm2_t30_150M_UR50D", layers: 30, hidden: 640, heads: 20 },
        Self { name: "650M", published: "esm2_t33_650M_UR50D", layers: 33, hidden: 1_280, heads: 20 },
        Self { name: "3B", published: "esm2_t36_3B_UR50D", layers: 36, hidden: 2_560, heads: 40 },
        Self { name: "15B", published: "esm2_t48_15B_UR50D", layers: 48, hidden: 5_120, heads: 40 },
    ];

    /// The published one of this name, in upper or lower case.
    pub fn published(name: &str) -> Option<Self> {
        Self::PUBLISHED.into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }

    /// The configuration that its weights are published with.
    pub fn config(self) -> ModelConfig {
        ModelConfig {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            intermediate: 4 * self.hidden,
            vocab: VOCAB,
            layer_norm_eps: 1e-5,
            token_dropout: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_shapes_have_the_published_sizes() {
        let millions = Shape::PUBLISHED.map(|shape| shape.config().parameters() / 1_000_000);
        assert_eq!(millions, [7, 33, 147, 649, 2_832, 15_102]);
        assert_eq!(Shape::published("3b").map(|shape| shape.published), Some("esm2_t36_3B_UR50D"));
        assert_eq!(Shape::published("tiny"), None);
        // Head widths that the CUDA kernels are compiled for.
        assert!(
            Shape::PUBLISHED
                .iter()
                .all(|shape| { crate::cuda::ROTARY_HEAD_WIDTHS.contains(&shape.config().head_width()) })
        );
    }
}
