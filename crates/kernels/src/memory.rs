//! Memory of kernels: aligned to cache lines, on huge pages where it's large.

use std::ptr::NonNull;

use crate::error::KernelError;

/// Alignment of every buffer: a cache line, a vector of 512 bits.
pub(crate) const ALIGNMENT: usize = 64;

/// Size of a huge page, to which larger buffers are aligned.
const HUGE: usize = 2 << 20;

/// Buffers of this size and more are pages of the system's own: they are zero without a pass over them,
/// and go back to the system at once.
const MAPPED: usize = 64 << 10;

/// Which pages a large buffer should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Huge ones, for what is read from front to back.
    Huge,
    /// Small ones, for what is filled here and there: memory that is not touched is not taken.
    Small,
}

/// Bytes that are zero at first, aligned to 64; to 2 MiB from there on. A page takes memory once it is
/// touched, by whom it is touched.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    memory: Memory,
}

/// Where a buffer's bytes are from.
enum Memory {
    Heap(std::alloc::Layout),
    /// Pages of the system's own: where they begin, and how many bytes.
    #[cfg(target_os = "linux")]
    Pages(NonNull<u8>, usize),
}

// SAFETY: it owns its memory, as a `Box` does.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(len: usize, pages: Pages) -> Self {
        let len = len.max(1).next_multiple_of(ALIGNMENT);
        #[cfg(target_os = "linux")]
        if len >= MAPPED
            && let Some(buffer) = Self::mapped(len, pages)
        {
            return buffer;
        }
        let _ = pages;
        let alignment = if len >= HUGE { HUGE } else { ALIGNMENT };
        let layout =
            std::alloc::Layout::from_size_align(len, alignment).expect("sizes are of real tensors");
        // SAFETY: the size is not 0.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Self { start, len, memory: Memory::Heap(layout) }
    }

    /// Pages of the system, which are zero without a pass over them.
    #[cfg(target_os = "linux")]
    fn mapped(len: usize, pages: Pages) -> Option<Self> {
        let alignment = if len >= HUGE { HUGE } else { ALIGNMENT };
        let n_bytes = if len >= HUGE { len.checked_add(HUGE)? } else { len };
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let first = unsafe { libc::mmap(std::ptr::null_mut(), n_bytes, protection, flags, -1, 0) };
        if first == libc::MAP_FAILED {
            return None;
        }
        let first = NonNull::new(first.cast::<u8>())?;
        let offset = first.as_ptr().align_offset(alignment);
        // SAFETY: a mapping begins at a page, and is a huge page longer than what is used of it where it
        // has to begin at one.
        let start = unsafe { first.add(offset) };
        let advice = match pages {
            Pages::Huge if len >= HUGE => libc::MADV_HUGEPAGE,
            _ => libc::MADV_NOHUGEPAGE,
        };
        // SAFETY: the range is ours, and advice changes nothing that a program sees. Where it's refused,
        // pages are as the system has them.
        unsafe { libc::madvise(start.as_ptr().cast(), len, advice) };
        Some(Self { start, len, memory: Memory::Pages(first, n_bytes) })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: it was allocated with this layout.
            Memory::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: it was mapped like that, and nobody uses it any more.
            Memory::Pages(first, n_bytes) => unsafe {
                libc::munmap(first.as_ptr().cast(), n_bytes);
            },
        }
    }
}

/// Numbers in memory of their own, zero at first, that go back to the system as a whole. A page of them
/// takes memory once it is touched.
pub struct Floats {
    buffer: Buffer,
    len: usize,
}

impl Floats {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        Self { buffer: Buffer::new(len * size_of::<f32>(), Pages::Small), len }
    }
}

impl std::fmt::Debug for Floats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Floats").field("len", &self.len).finish()
    }
}

impl Default for Floats {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the buffer is that long and aligned, and all bits are numbers.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast(), self.len) }
    }
}

/// Memory that kernels use on the way and that nobody reads afterwards. Reserved at load: a kernel
/// takes no memory of its own.
pub struct Scratch(Buffer);

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("n_bytes", &self.0.len()).finish()
    }
}

impl Scratch {
    /// Memory of at least `n_bytes`: the most that any kernel that will use it asks for.
    pub fn with_capacity(n_bytes: usize) -> Self {
        Self(Buffer::new(n_bytes, Pages::Huge))
    }

    /// Grows to `n_bytes`, if it is smaller. What was in it is lost.
    pub fn reserve(&mut self, n_bytes: usize) {
        if n_bytes > self.0.len() {
            self.0 = Buffer::new(n_bytes, Pages::Huge);
        }
    }

    /// Bytes there are.
    pub fn n_bytes(&self) -> usize {
        self.0.len()
    }

    /// The start of `n_bytes`, aligned to 64.
    pub(crate) fn take(&mut self, n_bytes: usize) -> Result<Region<'_>, KernelError> {
        let found = self.0.len();
        if n_bytes > found {
            return Err(KernelError::Scratch { found, wanted: n_bytes });
        }
        Ok(Region { start: self.0.as_mut_ptr(), len: found, scratch: std::marker::PhantomData })
    }
}

/// Scratch memory that threads share.
#[derive(Clone, Copy)]
pub(crate) struct Region<'a> {
    start: *mut u8,
    len: usize,
    scratch: std::marker::PhantomData<&'a mut Scratch>,
}

// SAFETY: it is plain memory; who writes to it from several threads keeps them apart.
unsafe impl Send for Region<'_> {}
// SAFETY: as above.
unsafe impl Sync for Region<'_> {}

impl Region<'_> {
    /// Where byte `at` is.
    ///
    /// # Panics
    /// `at` and the `n_bytes` behind it are not inside.
    pub(crate) fn at<T>(self, at: usize, n_bytes: usize) -> *mut T {
        assert!(at + n_bytes <= self.len, "a region outside the scratch memory");
        // SAFETY: it lies inside.
        unsafe { self.start.add(at) }.cast()
    }
}

/// The next multiple of a cache line.
pub(crate) fn aligned(n_bytes: usize) -> usize {
    n_bytes.next_multiple_of(ALIGNMENT)
}
