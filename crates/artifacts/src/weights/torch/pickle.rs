//! The pickle machine.
//!
//! A pickle is a list of opcodes for a machine with a stack, marks on it and a memo. This one knows
//! protocols 0 to 5 as far as tensors need them. The opcodes that make or change objects of
//! arbitrary classes are refused; of names and calls, those that [`globals`](super::globals) lists
//! are allowed.
//!
//! Source of the opcodes: CPython, `Lib/pickletools.py`.

use std::collections::HashMap;

use super::Fault;
use super::globals::{self, Global};
use super::heap::{Heap, Value};
use super::reader::Reader;
use crate::error::shorten;

/// Deepest stack and largest memo, in values.
const MAX_VALUES: usize = 1 << 20;

/// The first number of a legacy checkpoint, `0x1950a86a20f9469cfc6c`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Runs the pickle that `bytes` starts with. Its objects are added to `heap`; the result and the
/// length of the pickle are returned.
pub(super) fn run(bytes: &[u8], heap: &mut Heap) -> Result<(Value, usize), Fault> {
    let mut machine = Machine {
        reader: Reader::new(bytes),
        heap,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let offset = machine.reader.position();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(result)) => return Ok((result, machine.reader.position())),
            Err(Stop::Broken(reason)) => return Err(Fault::Pickle { offset, reason }),
            Err(Stop::Refused(name)) => return Err(Fault::Refused(name)),
        }
    }
}

enum Stop {
    Broken(String),
    Refused(String),
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Broken(reason.to_owned())
    }
}

struct Machine<'a> {
    reader: Reader<'a>,
    heap: &'a mut Heap,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    /// Runs one opcode; the result of the pickle when it was the last.
    fn step(&mut self) -> Result<Option<Value>, Stop> {
        let opcode = self.reader.byte()?;
        match opcode {
            b'.' => return Ok(Some(self.pop()?)),
            0x80 => {
                let protocol = self.reader.byte()?;
                if protocol > 5 {
                    return Err(format!("pickle protocol {protocol} is not known").into());
                }
            }
            0x95 => {
                self.reader.u64()?;
            }
            b'(' => self.mark()?,
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = *self.stack.last().ok_or("the stack is empty")?;
                self.push(top)?;
            }
            b'N' | 0x88 | 0x89 | b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => {
                let number = self.number(opcode)?;
                self.push(number)?;
            }
            b'X' | 0x8c | 0x8d | b'V' | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => {
                let text = self.text(opcode)?;
                self.push(text)?;
            }
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | 0x8f | 0x91 | b'}' | b'd' => {
                let container = self.container(opcode)?;
                self.push(container)?;
            }
            b'a' | b'e' | 0x90 => self.append(opcode)?,
            b's' | b'u' => self.set_items(opcode)?,
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memory(opcode)?,
            b'c' | 0x93 | b'R' | b'b' | b'Q' => self.object(opcode)?,
            _ => return Err(self.refuse(opcode)),
        }
        Ok(None)
    }

    fn number(&mut self, opcode: u8) -> Result<Value, Stop> {
        Ok(match opcode {
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.reader.array()?))),
            b'K' => Value::Int(i64::from(self.reader.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.reader.array()?))),
            b'I' | b'L' => {
                let line = self.reader.line()?;
                match line {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => digits
                        .trim_end_matches('L')
                        .parse()
                        .map(Value::Int)
                        .map_err(|_| format!("{:?} is no number", shorten(digits)))?,
                }
            }
            0x8a => {
                let n = self.reader.byte()?;
                long(self.reader.take(usize::from(n))?)
            }
            0x8b => {
                let n = self.reader.u32()?;
                long(self.reader.counted(u64::from(n))?)
            }
            b'F' => {
                self.reader.line()?;
                Value::Opaque
            }
            b'G' => {
                self.reader.take(8)?;
                Value::Opaque
            }
            _ => Value::None,
        })
    }

    fn text(&mut self, opcode: u8) -> Result<Value, Stop> {
        let n = match opcode {
            0x8c | b'U' | b'C' => u64::from(self.reader.byte()?),
            b'X' | b'T' | b'B' => u64::from(self.reader.u32()?),
            0x8d | 0x8e | 0x96 => self.reader.u64()?,
            _ => {
                let line = self.reader.line()?.to_owned();
                return Ok(self.heap.string(line)?);
            }
        };
        if matches!(opcode, b'B' | b'C' | 0x8e | 0x96) {
            self.reader.counted(n)?;
            return Ok(Value::Opaque);
        }
        let text = self.reader.string(n)?;
        Ok(self.heap.string(text)?)
    }

    fn container(&mut self, opcode: u8) -> Result<Value, Stop> {
        let items = match opcode {
            b')' | b']' | 0x8f | b'}' => Vec::new(),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                self.pop_many(n)?
            }
            _ => self.pop_mark()?,
        };
        Ok(match opcode {
            b'}' | b'd' => self.heap.dict(pairs(items)?)?,
            _ => self.heap.sequence(items)?,
        })
    }

    fn append(&mut self, opcode: u8) -> Result<(), Stop> {
        let items = if opcode == b'a' { self.pop_many(1)? } else { self.pop_mark()? };
        let list = match self.stack.last() {
            Some(&Value::Sequence(idx)) => self.heap.sequences.get_mut(idx),
            _ => None,
        };
        list.ok_or("appends to something else than a list")?.extend(items);
        Ok(())
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), Stop> {
        let items = if opcode == b's' { self.pop_many(2)? } else { self.pop_mark()? };
        let dict = match self.stack.last() {
            Some(&Value::Dict(idx)) => self.heap.dicts.get_mut(idx),
            _ => None,
        };
        dict.ok_or("sets an item of something else than a dictionary")?.extend(pairs(items)?);
        Ok(())
    }

    fn memory(&mut self, opcode: u8) -> Result<(), Stop> {
        let idx = match opcode {
            b'p' | b'g' => {
                let line = self.reader.line()?;
                line.parse().map_err(|_| format!("{:?} is no memo number", shorten(line)))?
            }
            b'q' | b'h' => u32::from(self.reader.byte()?),
            b'r' | b'j' => self.reader.u32()?,
            _ => u32::try_from(self.memo.len()).map_err(|_| "the memo is full")?,
        };
        if matches!(opcode, b'g' | b'h' | b'j') {
            let value = *self.memo.get(&idx).ok_or("reads a memo that was not written")?;
            return self.push(value);
        }
        if self.memo.len() >= MAX_VALUES {
            return Err(format!("remembers more than {MAX_VALUES} values, the limit").into());
        }
        let top = *self.stack.last().ok_or("the stack is empty")?;
        self.memo.insert(idx, top);
        Ok(())
    }

    fn object(&mut self, opcode: u8) -> Result<(), Stop> {
        let result = match opcode {
            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                Value::Global(resolve(module, name)?)
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let texts: Vec<&str> =
                    parts.iter().filter_map(|part| self.heap.as_str(*part)).collect();
                let &[module, name] = texts.as_slice() else {
                    return Err("a global's name is not a string".into());
                };
                Value::Global(resolve(module, name)?)
            }
            b'R' => {
                let arguments = self.pop()?;
                let Value::Global(function) = self.pop()? else {
                    return Err("calls something else than a function".into());
                };
                globals::call(self.heap, function, arguments)?
            }
            b'b' => {
                // `state_dict()` gives its OrderedDict an attribute with versions of modules.
                self.pop()?;
                match self.pop()? {
                    dict @ Value::Dict(_) => dict,
                    _ => return Err("sets attributes of something else than a dictionary".into()),
                }
            }
            _ => {
                let id = self.pop()?;
                globals::persistent(self.heap, id)?
            }
        };
        self.push(result)
    }

    /// The refusal of an opcode, with the name of the class it is about where it says one.
    fn refuse(&mut self, opcode: u8) -> Stop {
        let name = match opcode {
            b'i' => {
                let names = (self.reader.line(), self.reader.line());
                return match names {
                    (Ok(module), Ok(name)) => Stop::Refused(full_name(module, name)),
                    _ => Stop::Broken("a global's name has no end".to_owned()),
                };
            }
            b'o' => "OBJ",
            b'P' => "PERSID",
            b'S' => "STRING",
            0x81 => "NEWOBJ",
            0x82..=0x84 => "EXT",
            0x92 => "NEWOBJ_EX",
            0x97 | 0x98 => "NEXT_BUFFER",
            _ => return Stop::Broken(format!("{opcode:#04x} is no opcode")),
        };
        Stop::Refused(format!("the pickle opcode {name}"))
    }

    fn push(&mut self, value: Value) -> Result<(), Stop> {
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("its stack holds more than {MAX_VALUES} values, the limit").into());
        }
        self.stack.push(value);
        Ok(())
    }

    fn mark(&mut self) -> Result<(), Stop> {
        if self.marks.len() >= MAX_VALUES {
            return Err(format!("sets more than {MAX_VALUES} marks, the limit").into());
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The topmost value, as long as there is one above the last mark.
    fn pop(&mut self) -> Result<Value, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let value = if self.stack.len() > floor { self.stack.pop() } else { None };
        value.ok_or_else(|| "the stack is empty".into())
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Value>, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(n).filter(|start| *start >= floor);
        Ok(self.stack.split_off(start.ok_or("the stack is empty")?))
    }

    /// All values above the last mark, which is removed.
    fn pop_mark(&mut self) -> Result<Vec<Value>, Stop> {
        let start = self.marks.pop().filter(|start| *start <= self.stack.len());
        Ok(self.stack.split_off(start.ok_or("there is no mark")?))
    }
}

fn resolve(module: &str, name: &str) -> Result<Global, Stop> {
    globals::resolve(module, name).ok_or_else(|| Stop::Refused(full_name(module, name)))
}

fn full_name(module: &str, name: &str) -> String {
    shorten(&format!("{module}.{name}"))
}

fn pairs(items: Vec<Value>) -> Result<Vec<(Value, Value)>, Stop> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a dictionary has a key without a value".into()),
    }
}

/// A little-endian two's complement number of any length.
fn long(bytes: &[u8]) -> Value {
    if bytes == MAGIC {
        return Value::Magic;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        }
        None => Value::Opaque,
    }
}
