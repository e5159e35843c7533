//! The sources of the kernels and the entry points they define.
//!
//! The texts are part of the program; a host compiles them at run time for the device at hand. The
//! compile check (`kernels/tests/cuda_compile.rs`) holds the list of entry points against what the
//! sources really define.

use std::fmt;

use super::launch::{NORM_NUMBERS, ROTARY_HEAD_WIDTHS, ROTATED_BEYOND};

/// Options that every compilation needs, besides `--gpu-architecture`.
///
/// Without `--fmad=false` the compiler would fuse products and sums that the twins keep apart.
pub const COMPILE_OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// A CUDA source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Token embeddings.
    Embed,
    /// Layer norm.
    Norm,
    /// Attention.
    Attention,
    /// GELU, bias and residual sums.
    Epilogue,
    /// Pooled vectors and rows of residues.
    Pool,
    /// Number types of weights.
    Convert,
}

/// The device's instructions; all sources begin with them.
const INSTRUCTIONS: &str = include_str!("../../cuda/instructions.cuh");
/// Number types and arithmetic; all sources begin with them, too.
const NUMBERS: &str = include_str!("../../cuda/numbers.cuh");

impl Source {
    /// Every source.
    pub const ALL: [Self; 6] =
        [Self::Embed, Self::Norm, Self::Attention, Self::Epilogue, Self::Pool, Self::Convert];

    /// The file's name, for messages of the compiler.
    pub fn file(self) -> &'static str {
        match self {
            Self::Embed => "embed.cu",
            Self::Norm => "norm.cu",
            Self::Attention => "attention.cu",
            Self::Epilogue => "epilogue.cu",
            Self::Pool => "pool.cu",
            Self::Convert => "convert.cu",
        }
    }

    /// The whole text to compile: it includes no other file, neither ours nor CUDA's.
    ///
    /// `head_width` leaves out attention for heads of any other width, most of the compile time.
    pub fn text(self, head_width: Option<usize>) -> String {
        let define = head_width.map_or_else(String::new, |width| format!("#define HEAD_WIDTH {width}\n"));
        format!("{define}#line 1 \"instructions.cuh\"\n{INSTRUCTIONS}{}", self.without_instructions())
    }

    /// As [`Source::text`], for a device whose instructions are given otherwise.
    pub fn without_instructions(self) -> String {
        let body = match self {
            Self::Embed => include_str!("../../cuda/embed.cu"),
            Self::Norm => include_str!("../../cuda/norm.cu"),
            Self::Attention => include_str!("../../cuda/attention.cu"),
            Self::Epilogue => include_str!("../../cuda/epilogue.cu"),
            Self::Pool => include_str!("../../cuda/pool.cu"),
            Self::Convert => include_str!("../../cuda/convert.cu"),
        };
        format!("#line 1 \"numbers.cuh\"\n{NUMBERS}#line 1 \"{}\"\n{body}", self.file())
    }
}

/// How numbers are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Number {
    /// Every number type.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// One entry point; its signature is described in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Embeddings and token dropout.
    Embed {
        /// Type of the table.
        table: Number,
        /// Type of the residual stream.
        out: Number,
    },
    /// Layer norm; rows of up to 2,560 numbers are read once.
    LayerNorm {
        /// Type of the rows to normalise.
        x: Number,
        /// Type of the result.
        out: Number,
    },
    /// The same, bit for bit, with registers for rows of up to 5,120 numbers.
    LayerNormWide {
        /// As of [`Kernel::LayerNorm`].
        x: Number,
        /// As of [`Kernel::LayerNorm`].
        out: Number,
    },
    /// Attention within sequences.
    Attention {
        /// Type of queries, keys, values and result.
        number: Number,
        /// Width of a head, one of [`ROTARY_HEAD_WIDTHS`].
        head_width: usize,
    },
    /// The same, for batches with sequences longer than [`super::ROTATED_BEYOND`], whose keys
    /// [`Kernel::RotateKeys`] has rotated before.
    AttentionRotated {
        /// As of [`Kernel::Attention`], of 16 bits.
        number: Number,
        /// As of [`Kernel::Attention`].
        head_width: usize,
    },
    /// Rotates the keys of sequences longer than [`super::ROTATED_BEYOND`] in place.
    RotateKeys {
        /// As of [`Kernel::AttentionRotated`].
        number: Number,
        /// As of [`Kernel::Attention`].
        head_width: usize,
    },
    /// Exact GELU in place.
    Gelu(Number),
    /// Bias in place.
    Bias(Number),
    /// Bias, then exact GELU, in place.
    BiasGelu(Number),
    /// Product and bias onto the residual stream.
    BiasResidual {
        /// Type of the product.
        product: Number,
        /// Type of bias and residual stream.
        residual: Number,
    },
    /// One vector per sequence.
    Pool(Number),
    /// One vector per residue.
    Gather(Number),
    /// Weights into another number type.
    Convert {
        /// Type of the file.
        from: Number,
        /// Type on the device.
        to: Number,
    },
}

impl Kernel {
    /// Every entry point that the sources define.
    pub fn all() -> Vec<Self> {
        use Number::{Bf16, F16, F32};
        let stored = [(F32, F32), (F16, F16), (F16, F32), (Bf16, Bf16), (Bf16, F32)];
        let mut all = Vec::new();
        all.extend(stored.map(|(table, out)| Self::Embed { table, out }));
        all.extend(stored.map(|(x, out)| Self::LayerNorm { x, out }));
        all.extend([F16, Bf16].map(|out| Self::LayerNorm { x: F32, out }));
        all.extend(stored.map(|(x, out)| Self::LayerNormWide { x, out }));
        all.extend([F16, Bf16].map(|out| Self::LayerNormWide { x: F32, out }));
        for number in Number::ALL {
            all.extend(ROTARY_HEAD_WIDTHS.map(|head_width| Self::Attention { number, head_width }));
            if number != F32 {
                all.extend(
                    ROTARY_HEAD_WIDTHS.map(|head_width| Self::AttentionRotated { number, head_width }),
                );
                all.extend(ROTARY_HEAD_WIDTHS.map(|head_width| Self::RotateKeys { number, head_width }));
            }
            all.extend([
                Self::Gelu(number),
                Self::Bias(number),
                Self::BiasGelu(number),
                Self::Pool(number),
                Self::Gather(number),
            ]);
            all.extend(
                Number::ALL
                    .into_iter()
                    .filter(|&to| to != number)
                    .map(|to| Self::Convert { from: number, to }),
            );
        }
        all.extend(stored.map(|(product, residual)| Self::BiasResidual { product, residual }));
        all
    }

    /// Layer norm of rows of `width`.
    pub fn layer_norm(x: Number, out: Number, width: usize) -> Self {
        if width <= NORM_NUMBERS { Self::LayerNorm { x, out } } else { Self::LayerNormWide { x, out } }
    }

    /// What attention takes, in this order, where the longest sequence has `longest` tokens.
    ///
    /// The first works on keys in place, the second is attention itself.
    pub fn attention(number: Number, head_width: usize, longest: usize) -> (Option<Self>, Self) {
        if number == Number::F32 || longest <= ROTATED_BEYOND {
            return (None, Self::Attention { number, head_width });
        }
        (Some(Self::RotateKeys { number, head_width }), Self::AttentionRotated { number, head_width })
    }

    /// The width of the heads that it is compiled for; `None` where that does not matter.
    pub fn head_width(self) -> Option<usize> {
        match self {
            Self::Attention { head_width, .. }
            | Self::AttentionRotated { head_width, .. }
            | Self::RotateKeys { head_width, .. } => Some(head_width),
            Self::Embed { .. }
            | Self::LayerNorm { .. }
            | Self::LayerNormWide { .. }
            | Self::Gelu(_)
            | Self::Bias(_)
            | Self::BiasGelu(_)
            | Self::BiasResidual { .. }
            | Self::Pool(_)
            | Self::Gather(_)
            | Self::Convert { .. } => None,
        }
    }

    /// The source that defines it.
    pub fn source(self) -> Source {
        match self {
            Self::Embed { .. } => Source::Embed,
            Self::LayerNorm { .. } | Self::LayerNormWide { .. } => Source::Norm,
            Self::Attention { .. } | Self::AttentionRotated { .. } | Self::RotateKeys { .. } => {
                Source::Attention
            }
            Self::Gelu(_) | Self::Bias(_) | Self::BiasGelu(_) | Self::BiasResidual { .. } => Source::Epilogue,
            Self::Pool(_) | Self::Gather(_) => Source::Pool,
            Self::Convert { .. } => Source::Convert,
        }
    }

    /// The `extern "C"` name.
    pub fn name(self) -> String {
        match self {
            Self::Embed { table, out } => format!("embed_{table}_{out}"),
            Self::LayerNorm { x, out } => format!("layer_norm_{x}_{out}"),
            Self::LayerNormWide { x, out } => format!("layer_norm_wide_{x}_{out}"),
            Self::Attention { number, head_width } => format!("attention_{number}_{head_width}"),
            Self::AttentionRotated { number, head_width } => {
                format!("attention_rotated_{number}_{head_width}")
            }
            Self::RotateKeys { number, head_width } => format!("rotate_keys_{number}_{head_width}"),
            Self::Gelu(number) => format!("gelu_{number}"),
            Self::Bias(number) => format!("bias_{number}"),
            Self::BiasGelu(number) => format!("bias_gelu_{number}"),
            Self::BiasResidual { product, residual } => format!("bias_residual_{product}_{residual}"),
            Self::Pool(number) => format!("pool_{number}"),
            Self::Gather(number) => format!("gather_{number}"),
            Self::Convert { from, to } => format!("convert_{from}_{to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_sources() {
        let attention = Source::Attention.without_instructions();
        assert!(attention.contains(&format!("constexpr int ROTATED_BEYOND = {ROTATED_BEYOND};")));
        let norm = Source::Norm.without_instructions();
        assert!(norm.contains(&format!("constexpr int HELD = {NORM_NUMBERS};")));
    }

    #[test]
    fn only_long_sequences_of_16_bits_have_their_keys_rotated_before() {
        let (number, head_width) = (Number::F16, 64);
        let attention = Kernel::Attention { number, head_width };
        assert_eq!(Kernel::attention(number, head_width, ROTATED_BEYOND), (None, attention));
        let (rotate, rotated) = Kernel::attention(number, head_width, ROTATED_BEYOND + 1);
        assert_eq!(rotate, Some(Kernel::RotateKeys { number, head_width }));
        assert_eq!(rotated, Kernel::AttentionRotated { number, head_width });
        let number = Number::F32;
        let attention = Kernel::Attention { number, head_width };
        assert_eq!(Kernel::attention(number, head_width, 100_000), (None, attention));
    }
}
