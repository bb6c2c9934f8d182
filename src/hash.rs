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
///
/// Each hash is two chains, of the even and of the odd blocks, which the processor runs side by
/// side: one product has to wait for the one before in its chain.
pub struct Hash<'a> {
    even: [u64; 2],
    odd: [u64; 2],
    keys: &'a [u64; 6],
}

impl<'a> Hash<'a> {
    #[inline]
    pub fn new(Keys(keys): &'a Keys) -> Self {
        Self { even: [keys[0], keys[1]], odd: [keys[4], keys[5]], keys }
    }

    /// Hashes two integers.
    #[inline]
    pub fn block(&mut self, x: u64, y: u64) {
        self.even = self.step(self.even, [x, y]);
    }

    #[inline]
    fn step(&self, [a, b]: [u64; 2], [x, y]: [u64; 2]) -> [u64; 2] {
        [fold(x ^ self.keys[2], y ^ a), fold(x ^ b, y ^ self.keys[3])]
    }

    fn pair(&mut self, even: &[u8; 16], odd: &[u8; 16]) {
        self.even = self.step(self.even, halves(even));
        self.odd = self.step(self.odd, halves(odd));
    }

    /// Their number must be hashed beforehand, so that some may be taken twice.
    // In line, so that the state stays in registers from one part of a spelling to the next.
    #[inline(always)]
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (pairs, tail) = bytes.as_chunks::<32>();
        for pair in pairs {
            let (blocks, _) = pair.as_chunks();
            self.pair(&blocks[0], &blocks[1]);
        }
        if tail.is_empty() {
            return;
        }
        if let Some(last) = bytes.last_chunk::<32>() {
            let (blocks, _) = last.as_chunks();
            self.pair(&blocks[0], &blocks[1]);
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            self.pair(first, last);
        } else {
            let [x, y] = short(bytes);
            self.block(x, y);
        }
    }

    #[inline]
    pub fn finish(self) -> [u64; 2] {
        let Self { even: [a, b], odd: [c, d], keys } = self;
        [fold(a ^ keys[3], c ^ keys[5]), fold(b ^ keys[2], d ^ keys[4])]
    }
}

/// At most 15 bytes, all of them.
fn short(bytes: &[u8]) -> [u64; 2] {
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        [u64::from_le_bytes(*first), u64::from_le_bytes(*last)]
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        [u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into()]
    } else {
        let at = |i: usize| u64::from(bytes.get(i).copied().unwrap_or(0));
        [at(0) | at(1) << 8, at(2)]
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
        let text = *b"a.name.of.some.length.and.a.tail.of.three.blocks.and.some.more.bytes";
        let of = |text: &[u8]| {
            let mut hash = Hash::new(&keys);
            hash.bytes(text);
            hash.finish()
        };
        for length in (1..=text.len()).filter(|n| n % 5 == 1 || [3, 4, 8, 15, 16, 32].contains(n)) {
            let base = of(&text[..length]);
            for bit in 0..length * 8 {
                let mut changed = text;
                changed[bit / 8] ^= 1 << (bit % 8);
                for (a, b) in of(&changed[..length]).into_iter().zip(base) {
                    let differing = (a ^ b).count_ones();
                    assert!((8..=56).contains(&differing), "{length}, {bit}: {differing} of 64");
                }
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
