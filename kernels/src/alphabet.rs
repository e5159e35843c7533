//! ESM-2's vocabulary: one token per residue letter.

/// Token that opens every sequence (`<cls>`).
pub const BOS: u8 = 0;
/// Token that closes every sequence (`<eos>`).
pub const EOS: u8 = 2;
/// Token of a letter outside the vocabulary (`<unk>`).
pub const UNK: u8 = 3;

/// Tokens of the vocabulary: every token id is below it.
pub const VOCAB: usize = 33;
/// Token that hides a residue in training (`<mask>`).
pub const MASK: u8 = 32;

/// Letters in token order, from token 4.
const LETTERS: &[u8; 27] = b"LAGVSERTIDPKQNFYMHWCXBUZO.-";

const TOKEN_OF: [u8; 256] = {
    let mut table = [UNK; 256];
    let mut i = 0;
    while i < LETTERS.len() {
        table[LETTERS[i] as usize] = i as u8 + 4;
        i += 1;
    }
    table
};

/// The token of one upper-case letter; [`UNK`] outside the vocabulary.
pub fn token(letter: u8) -> u8 {
    TOKEN_OF[letter as usize]
}

/// Appends BOS, one token per letter, EOS.
pub fn tokenize_into(residues: &[u8], tokens: &mut Vec<u8>) {
    tokens.reserve(residues.len() + 2);
    tokens.push(BOS);
    tokens.extend(residues.iter().map(|&letter| token(letter)));
    tokens.push(EOS);
}
