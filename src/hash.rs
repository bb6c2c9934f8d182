//! Hashes of 128 bits under random keys, good enough to stand for what was hashed.

use ahash::RandomState;

/// Keys that nobody outside can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys([u64; 6]);

impl Keys {
    /// Drawn from the system's random source.
    pub fn random() -> Self {
        Self(std::array::from_fn(|_| RandomState::new().hash_one(0_u8)))
    }

    /// To be kept beside hashes that outlive the process, and as secret as they are.
    pub fn to_bytes(self) -> [u8; 48] {
        let mut bytes = [0; 48];
        let (chunks, _) = bytes.as_chunks_mut();
        chunks.iter_mut().zip(self.0).for_each(|(chunk, key)| *chunk = key.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; 48]) -> Self {
        let (chunks, _) = bytes.as_chunks();
        Self(std::array::from_fn(|i| u64::from_le_bytes(chunks[i])))
    }

    /// The hash of some bytes alone, in 64 bits.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hash = Hash::new(self);
        hash.block(bytes.len() as u64, 0);
        hash.bytes(bytes);
        hash.finish()[0]
    }
}

/// Two hashes of 64 bits over the same bytes, each under keys of its own. A block of 16 bytes is
/// multiplied into each: both halves of the product of 128 bits, one folded onto the other.
pub struct Hash<'a> {
    lanes: [u64; 2],
    keys: &'a [u64; 6],
}

impl<'a> Hash<'a> {
    #[inline]
    pub fn new(Keys(keys): &'a Keys) -> Self {
        Self { lanes: [keys[0], keys[1]], keys }
    }

    #[inline]
    pub fn block(&mut self, x: u64, y: u64) {
        let [a, b] = self.lanes;
        let k = self.keys;
        self.lanes = [fold(x ^ k[2], y ^ a), fold(x ^ b, y ^ k[3])];
    }

    /// Their number must be hashed beforehand, so that the last ones may be taken twice or padded.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (blocks, tail) = bytes.as_chunks::<16>();
        for block in blocks {
            let [x, y] = halves(block);
            self.block(x, y);
        }
        if tail.is_empty() {
            return;
        }
        if let Some(last) = bytes.last_chunk::<16>() {
            let [x, y] = halves(last);
            self.block(x, y);
        } else {
            let mut padded = [0; 16];
            padded[..tail.len()].copy_from_slice(tail);
            let [x, y] = halves(&padded);
            self.block(x, y);
        }
    }

    #[inline]
    pub fn finish(self) -> [u64; 2] {
        let [a, b] = self.lanes;
        [fold(a ^ self.keys[4], b), fold(b ^ self.keys[5], a)]
    }
}

fn halves(block: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*block);
    [whole as u64, (whole >> 64) as u64]
}

fn fold(x: u64, y: u64) -> u64 {
    let product = u128::from(x) * u128::from(y);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_input_changes_half_of_the_hash() {
        let keys = Keys::random();
        let name = *b"a.name.of.some.length.and.a.tail";
        let of = |name: &[u8]| {
            let mut hash = Hash::new(&keys);
            hash.bytes(name);
            hash.finish()
        };
        let base = of(&name);
        for bit in 0..name.len() * 8 {
            let mut changed = name;
            changed[bit / 8] ^= 1 << (bit % 8);
            for (a, b) in of(&changed).into_iter().zip(base) {
                let differing = (a ^ b).count_ones();
                assert!((10..=54).contains(&differing), "bit {bit}: {differing} of 64 differ");
            }
        }
    }

    #[test]
    fn keys_decide_and_come_back_from_their_bytes() {
        let keys = Keys::random();
        assert_eq!(Keys::from_bytes(&keys.to_bytes()), keys);
        assert_eq!(keys.hash(b"a"), keys.hash(b"a"));
        assert_ne!(keys.hash(b"a"), keys.hash(b"a\0"));
        assert_ne!(keys.hash(b"a"), Keys::random().hash(b"a"));
    }
}
