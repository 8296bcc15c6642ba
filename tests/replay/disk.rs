//! The host's side of the disk: carries out what the guest asks, in memory.

use logchannel::{DiskOp, DiskRequest, DiskStatus, Event};

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    pub bytes: Vec<u8>,
}

impl Disk {
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes] }
    }

    /// Carries out a request, or fails it without effect.
    pub fn complete(&mut self, request: &DiskRequest, fail: bool) -> Event {
        let (mut data, mut status) = (Vec::new(), DiskStatus::Ok);
        match &request.op {
            _ if fail => status = DiskStatus::IoError,
            DiskOp::Read { offset, len } => {
                data = self.bytes[*offset as usize..][..*len as usize].to_vec();
            }
            DiskOp::Write { offset, data, .. } => {
                self.bytes[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            DiskOp::Flush => {}
        }
        Event::DiskDone { request: request.id, status, data }
    }
}

/// Whether two requests may be carried out in any order.
pub fn independent(a: &DiskRequest, b: &DiskRequest) -> bool {
    let range = |op: &DiskOp| match op {
        DiskOp::Read { offset, len } => Some((*offset, offset + u64::from(*len))),
        DiskOp::Write { offset, data, .. } => Some((*offset, offset + data.len() as u64)),
        DiskOp::Flush => None,
    };
    match (range(&a.op), range(&b.op)) {
        (Some((a_start, a_end)), Some((b_start, b_end))) => a_end <= b_start || b_end <= a_start,
        _ => false,
    }
}
