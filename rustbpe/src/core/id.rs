//! Storage types of token ids.

/// A stored token id, of 16 bits if all ids of the vocabulary fit, else 32.
pub trait Id: Copy + Send + Sync {
    /// The lowest bits of `id`.
    fn new(id: u32) -> Self;
    /// Writes the ids' bytes, little-endian, into as many as they need.
    fn write(ids: &[Self], bytes: &mut [u8]);
}

impl Id for u16 {
    fn new(id: u32) -> Self {
        id as u16
    }

    fn write(ids: &[Self], bytes: &mut [u8]) {
        bytes.chunks_exact_mut(2).zip(ids).for_each(|(bytes, id)| bytes.copy_from_slice(&id.to_le_bytes()));
    }
}

impl Id for u32 {
    fn new(id: u32) -> Self {
        id
    }

    fn write(ids: &[Self], bytes: &mut [u8]) {
        bytes.chunks_exact_mut(4).zip(ids).for_each(|(bytes, id)| bytes.copy_from_slice(&id.to_le_bytes()));
    }
}
