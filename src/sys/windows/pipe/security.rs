//! A security descriptor that admits only the current user.

#![expect(
    unsafe_code,
    reason = "a security descriptor comes from calls of Windows alone"
)]

use std::io;
use std::mem;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, SECURITY_MAX_SID_SIZE,
    TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

pub(super) struct OnlyThisUser {
    /// The system's, to be freed with `LocalFree`.
    descriptor: PSECURITY_DESCRIPTOR,
}

impl OnlyThisUser {
    pub(super) fn new() -> io::Result<Self> {
        let text: Vec<u16> = descriptor_text(&current_user()?)
            .encode_utf16()
            .chain([0])
            .collect();
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a zero, `descriptor` is writable, and the size is not asked for.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        };
        succeeded(made)?;
        Ok(Self { descriptor })
    }

    /// They point to `self`.
    pub(super) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: mem::size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.descriptor,
            bInheritHandle: 0,
        }
    }
}

impl Drop for OnlyThisUser {
    fn drop(&mut self) {
        // SAFETY: the system allocated it for this, and nobody else has it.
        unsafe { LocalFree(self.descriptor) };
    }
}

/// A protected access list, which inherits nothing, with one entry: full access for this user.
fn descriptor_text(user: &str) -> String {
    format!("D:P(A;;GA;;;{user})")
}

/// The user of this process, as a SID such as `S-1-5-21-…`.
fn current_user() -> io::Result<String> {
    /// `TokenUser` is a `TOKEN_USER`, followed by the SID that it points to.
    #[repr(C)]
    struct UserAndSid {
        user: TOKEN_USER,
        sid: [u8; SECURITY_MAX_SID_SIZE as usize],
    }

    let token = process_token()?;
    let mut buffer = mem::MaybeUninit::<UserAndSid>::zeroed();
    let mut length = 0;
    // SAFETY: the token is open, and the buffer is writable, as large as is said, and aligned for
    // what is written.
    let read = unsafe {
        GetTokenInformation(
            token.as_raw_handle().cast(),
            TokenUser,
            buffer.as_mut_ptr().cast(),
            mem::size_of::<UserAndSid>() as u32,
            &mut length,
        )
    };
    succeeded(read)?;
    // SAFETY: zeroes are valid for each field, and so is what the call wrote.
    let user = unsafe { buffer.assume_init_ref() };
    let mut text = ptr::null_mut();
    // SAFETY: the SID lies in `buffer`, which lives on, and `text` is writable.
    let converted = unsafe { ConvertSidToStringSidW(user.user.User.Sid, &mut text) };
    succeeded(converted)?;
    // SAFETY: the call wrote it.
    let sid = unsafe { copy_of(text) };
    // SAFETY: the system allocated it for this, and `sid` is a copy.
    unsafe { LocalFree(text.cast()) };
    Ok(sid)
}

/// # Safety
///
/// `text` is a valid text that ends with a zero.
unsafe fn copy_of(text: *const u16) -> String {
    let mut characters = Vec::new();
    let mut next = text;
    loop {
        // SAFETY: the caller promises that the text ends with a zero, and none was read yet.
        match unsafe { next.read() } {
            0 => return String::from_utf16_lossy(&characters),
            character => characters.push(character),
        }
        // SAFETY: this character was not the zero, so at least the zero follows.
        next = unsafe { next.add(1) };
    }
}

fn process_token() -> io::Result<OwnedHandle> {
    // SAFETY: it only returns a constant that stands for this process.
    let process = unsafe { GetCurrentProcess() };
    let mut token = ptr::null_mut();
    // SAFETY: `token` is writable.
    let opened = unsafe { OpenProcessToken(process, TOKEN_QUERY, &mut token) };
    succeeded(opened)?;
    // SAFETY: the handle was just opened, and nobody else has it.
    Ok(unsafe { OwnedHandle::from_raw_handle(token.cast()) })
}

fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::Security::Authorization::ConvertSecurityDescriptorToStringSecurityDescriptorW;
    use windows_sys::Win32::Security::DACL_SECURITY_INFORMATION;

    use super::*;

    #[test]
    fn the_descriptor_names_the_current_user_alone() {
        let user = current_user().unwrap();
        assert!(user.starts_with("S-1-"), "{user}");
        let only_this_user = OnlyThisUser::new().unwrap();
        let mut text = ptr::null_mut();
        // SAFETY: the descriptor is valid, the result is writable, and its length is not asked for.
        let converted = unsafe {
            ConvertSecurityDescriptorToStringSecurityDescriptorW(
                only_this_user.descriptor,
                SDDL_REVISION_1,
                DACL_SECURITY_INFORMATION,
                &mut text,
                ptr::null_mut(),
            )
        };
        succeeded(converted).unwrap();
        // SAFETY: the call wrote it.
        let found = unsafe { copy_of(text) };
        // SAFETY: the system allocated it for this, and `found` is a copy.
        unsafe { LocalFree(text.cast()) };
        assert_eq!(found, format!("D:P(A;;GA;;;{user})"));
    }
}
