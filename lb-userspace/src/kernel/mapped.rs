//! An array map in this process's memory: elements are read and written without system calls.
//!
//! The programs read the same memory at the same time. Every access here is one of an aligned 64-bit word; what must be
//! seen in one piece is one such word. `BPF_F_MMAPABLE` arrays can be mapped since kernel 5.5.

use std::{
    marker::PhantomData,
    os::fd::AsFd,
    slice,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aya::{
    Pod,
    maps::{MapData, MapError},
};
use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// An array map of `T`, whose size is a multiple of eight bytes.
#[derive(Debug)]
pub(crate) struct MappedArray<T> {
    memory: MmapRaw,
    length: u32,
    writable: bool,
    element: PhantomData<T>,
}

/// There is no such element, or no such word in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfBounds {
    /// The index.
    pub(crate) index: u32,
}

impl<T: Pod + bytemuck::Pod> MappedArray<T> {
    /// Maps all elements, for reading and, if `writable`, for writing.
    pub(crate) fn new(map: &MapData, writable: bool) -> Result<Self, MapError> {
        const { assert!(size_of::<T>().is_multiple_of(WORD), "an element is a whole number of words") };
        let info = map.info()?;
        let (size, expected) = (info.value_size() as usize, size_of::<T>());
        if size != expected {
            return Err(MapError::InvalidValueSize { size, expected });
        }
        let length = info.max_entries();
        let mut options = MmapOptions::new();
        options.len(length as usize * size_of::<T>());
        let memory = if writable {
            options.map_raw(&map.fd().as_fd())?
        } else {
            options.map_raw_read_only(&map.fd().as_fd())?
        };
        Ok(Self { memory, length, writable, element: PhantomData })
    }

    /// The number of elements.
    pub(crate) const fn len(&self) -> u32 {
        self.length
    }

    /// Reads an element, word by word: if it is written meanwhile, each word is old or new.
    pub(crate) fn load(&self, index: u32) -> Result<T, OutOfBounds> {
        let mut value = T::zeroed();
        let (bytes, _) = bytemuck::bytes_of_mut(&mut value).as_chunks_mut();
        for (bytes, word) in bytes.iter_mut().zip(self.words(index, 1)?) {
            *bytes = word.load(Ordering::Acquire).to_ne_bytes();
        }
        Ok(value)
    }

    /// Fills consecutive elements that no program is led to.
    ///
    /// Whatever leads to them afterwards, a store here or a system call, comes after it for all processors.
    pub(crate) fn fill(&mut self, first: u32, values: &[T]) -> Result<(), OutOfBounds> {
        let (bytes, _) = bytemuck::cast_slice::<T, u8>(values).as_chunks();
        for (word, bytes) in self.words_mut(first, values.len())?.iter().zip(bytes) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        fence(Ordering::Release);
        Ok(())
    }

    /// Stores one word of an element, at a byte offset in it, while programs read it.
    pub(crate) fn store(&mut self, index: u32, offset: usize, word: u64) -> Result<(), OutOfBounds> {
        let target = self.words_mut(index, 1)?.get(offset / WORD).ok_or(OutOfBounds { index })?;
        target.store(word, Ordering::Release);
        Ok(())
    }

    /// The only way to write: never through a read-only mapping.
    fn words_mut(&mut self, first: u32, count: usize) -> Result<&[AtomicU64], OutOfBounds> {
        assert!(self.writable, "a mapping for inspection is not written");
        self.words(first, count)
    }

    /// The words of consecutive elements.
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
    fn words(&self, first: u32, count: usize) -> Result<&[AtomicU64], OutOfBounds> {
        if (self.length as usize) < first as usize + count {
            return Err(OutOfBounds { index: first.max(self.length) });
        }
        let words = size_of::<T>() / WORD;
        // SAFETY: inside the mapping, which lives as long as `self`; a page is aligned for words. The programs and other
        // processes access it only in ways that do not conflict with atomic accesses of words.
        Ok(unsafe {
            let first = self.memory.as_mut_ptr().cast::<AtomicU64>().add(first as usize * words);
            slice::from_raw_parts(first, count * words)
        })
    }
}
