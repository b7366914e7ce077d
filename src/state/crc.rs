//! CRC-32, as zip and PNG have it.

/// What each value of a byte does to the sum.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 0 {
                sum >> 1
            } else {
                sum >> 1 ^ 0xedb8_8320
            };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

pub(super) struct Crc(u32);

impl Crc {
    pub(super) fn new() -> Self {
        Self(u32::MAX)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = TABLE[(self.0 as u8 ^ byte) as usize] ^ self.0 >> 8;
        }
    }

    pub(super) fn value(&self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_the_usual_one() {
        let bytes: Vec<u8> = (0..1000_u32).map(|i| (i * i / 8) as u8).collect();
        let mut crc = Crc::new();
        for piece in bytes.chunks(7) {
            crc.update(piece);
        }
        assert_eq!(crc.value(), crc32fast::hash(&bytes));
    }
}
