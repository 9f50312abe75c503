//! Frames are read as they were meant, and anything else is refused.

use super::*;

fn frame(kind: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, kind, id, body).unwrap();
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_bytes(&mut bytes, text.as_bytes());
    bytes
}

#[test]
fn frames_come_one_after_the_other() {
    let reply = [&200u16.to_be_bytes()[..], &text("OK"), &[0, 0, 0, 1], &text("k"), &text("v")];
    let bytes = [
        frame(READY, 0, &[0, 0, 0, 7]),
        frame(REPLY, 5, &reply.concat()),
        frame(PIECE, 5, b"piece"),
        frame(END, 5, b""),
        frame(FAILED, 6, &[&[2][..], &text("no memory")].concat()),
    ]
    .concat();
    let mut from = bytes.as_slice();
    let mut next = || read(&mut from).unwrap();
    assert_eq!(next(), Some(Frame::Ready { max_in_flight: 7 }));
    let headers = vec![("k".to_owned(), "v".to_owned())];
    assert_eq!(next(), Some(Frame::Reply { id: 5, status: 200, reason: "OK".into(), headers }));
    assert_eq!(next(), Some(Frame::Piece { id: 5, bytes: b"piece".to_vec() }));
    assert_eq!(next(), Some(Frame::End { id: 5 }));
    let message = "no memory".to_owned();
    assert_eq!(next(), Some(Frame::Failed { id: 6, kind: Failure::OutOfMemory, message }));
    assert_eq!(next(), None);
}

#[test]
fn what_is_no_frame_is_refused() {
    let long = {
        let mut bytes = frame(END, 1, b"");
        bytes.splice(16.., u32::MAX.to_be_bytes());
        bytes
    };
    let many = [&200u16.to_be_bytes()[..], &text(""), &u32::MAX.to_be_bytes()].concat();
    for bytes in [
        b"hello, server, how are you?".to_vec(),
        b"DT".to_vec(),
        frame(9, 1, b""),
        frame(READY, 0, b"1"),
        frame(READY, 0, b"12345"),
        frame(END, 1, b"x"),
        frame(FAILED, 1, &[&[9][..], &text("x")].concat()),
        frame(REPLY, 1, &[0, 200, 0, 0, 1, 0, b'x']),
        frame(REPLY, 1, &many),
        frame(PIECE, 1, b"piece")[..22].to_vec(),
        long,
    ] {
        let result = read(&mut bytes.as_slice());
        assert!(matches!(result, Err(WireError::Garbage(_))), "{bytes:?}: {result:?}");
    }
}

#[test]
fn a_length_takes_no_memory_before_its_bytes_come() {
    let mut bytes = frame(PIECE, 1, b"");
    bytes.splice(16.., MAX_BODY_BYTES.to_be_bytes());
    assert!(matches!(read(&mut bytes.as_slice()), Err(WireError::Garbage(_))));
}

#[test]
fn a_call_is_as_long_as_was_reckoned() {
    let body = vec![7; 100_000];
    let request = Request {
        id: "r",
        properties: &[("Content-Type", "text/plain")],
        content: &[("data", &body), ("", b"")],
    };
    let mut bytes = Vec::new();
    write_call(&mut bytes, 3, "handle", &[request, request]).unwrap();
    let reckoned = call_bytes("handle", &[request, request]);
    assert_eq!(bytes.len() as u64, reckoned + HEAD_BYTES as u64);
    assert_eq!(bytes[16..20], u32::try_from(reckoned).unwrap().to_be_bytes());
}
