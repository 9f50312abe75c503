//! Memory of kernels: aligned to cache lines, on huge pages where it's large.

use std::alloc::{Layout, alloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::error::KernelError;

/// Alignment of every buffer: a cache line, a vector of 512 bits.
pub(crate) const ALIGNMENT: usize = 64;

/// Size of a huge page, to which larger buffers are aligned.
const HUGE: usize = 2 << 20;

/// Bytes that were zero at first, aligned to 64; to 2 MiB from there on.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, as a `Box` does.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        let alignment = if len >= HUGE { HUGE } else { ALIGNMENT };
        let size = len.max(1).next_multiple_of(ALIGNMENT);
        let layout = Layout::from_size_align(size, alignment).expect("sizes are of real tensors");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        // Before the first touch, which decides a page's size.
        advise_huge(start, layout);
        // SAFETY: the memory is as long as that.
        unsafe { start.write_bytes(0, layout.size()) };
        Self { start, layout }
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
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
        // SAFETY: it was allocated with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Asks for huge pages: reading a matrix touches a new page of 4 KiB every few hundred cycles.
#[cfg(target_os = "linux")]
fn advise_huge(start: NonNull<u8>, layout: Layout) {
    if layout.align() >= HUGE {
        // SAFETY: the range is ours, and advice changes nothing that a program sees. Where it's
        // refused, pages are small.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_start: NonNull<u8>, _layout: Layout) {}

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
        Self(Buffer::new(n_bytes))
    }

    /// Grows to `n_bytes`, if it is smaller. What was in it is lost.
    pub fn reserve(&mut self, n_bytes: usize) {
        if n_bytes > self.0.len() {
            self.0 = Buffer::new(n_bytes);
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
