//! What is odd about a map, though it can be used.

use std::fmt;

use crate::device::Device;

/// What is odd about a map, though it can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A key of the map names nothing in the model.
    UnknownKey {
        /// The key.
        key: String,
    },
    /// Tied parameters have different devices, so each of these holds them.
    TiedApart {
        /// The parameters, each with its device.
        places: Vec<(String, Device)>,
    },
    /// Buffers of offloaded modules stay on an accelerator, and none has room for them.
    BuffersDontFit {
        /// Bytes of these buffers.
        buffer_bytes: u64,
    },
    /// A device received nothing.
    InsufficientMemory {
        /// The device.
        device: Device,
        /// Bytes it would have needed for what was next, what has to stay free included.
        needed_bytes: u64,
    },
}

impl Warning {
    /// Writes it to the log.
    pub(crate) fn log(&self) {
        tracing::warn!("{self}");
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { key } => {
                write!(f, "device_map: {key:?} names no module and no tensor of the model")
            }
            Self::TiedApart { places } => {
                f.write_str("device_map: tied parameters are on different devices:")?;
                for (idx, (name, device)) in places.iter().enumerate() {
                    let comma = if idx == 0 { "" } else { "," };
                    write!(f, "{comma} {name} on {device}")?;
                }
                f.write_str("; give them one, or set device_map=auto")
            }
            Self::BuffersDontFit { buffer_bytes } => write!(
                f,
                "buffers of offloaded modules take {buffer_bytes} bytes, which no accelerator has left; \
                 with offload_buffers they are offloaded too"
            ),
            Self::InsufficientMemory { device, needed_bytes } => write!(
                f,
                "insufficient memory: nothing was placed on device {device}, which would have needed \
                 {needed_bytes} bytes for the next module"
            ),
        }
    }
}
