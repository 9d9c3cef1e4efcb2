//! User authentication: one password request, sent without waiting for the service to be granted.

use crate::{
    error::ProtocolError,
    fault::Fault,
    msg,
    wire::{Put, Reader},
};
use std::fmt;

const SERVICE: &[u8] = b"ssh-userauth";
const NEXT_SERVICE: &[u8] = b"ssh-connection";

/// A password. Its text shows up in no `Debug` output.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The messages that ask for the service and log in.
pub(crate) fn requests(user: &str, password: &Password) -> [Vec<u8>; 2] {
    let mut service = vec![msg::SERVICE_REQUEST];
    service.put_string(SERVICE);
    let mut login = vec![msg::USERAUTH_REQUEST];
    login.put_string(user.as_bytes());
    login.put_string(NEXT_SERVICE);
    login.put_string(b"password");
    login.put_bool(false);
    login.put_string(password.0.as_bytes());
    [service, login]
}

/// What the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More is to come.
    Waiting,
    /// Logged in.
    Done,
}

/// Reads a message of the authentication phase.
pub(crate) fn receive(payload: &[u8]) -> Result<Progress, Fault> {
    let (number, body) = payload.split_first().ok_or(ProtocolError::ShortMessage)?;
    match *number {
        msg::SERVICE_ACCEPT => {
            let mut reader = Reader::new(body);
            if reader.string()? != SERVICE {
                return Err(ProtocolError::Unexpected {
                    number: *number,
                    during: "authentication",
                }
                .into());
            }
            Ok(Progress::Waiting)
        }
        msg::USERAUTH_BANNER => Ok(Progress::Waiting),
        msg::USERAUTH_SUCCESS => Ok(Progress::Done),
        msg::USERAUTH_FAILURE => Err(Fault::AuthFailed),
        number => Err(ProtocolError::Unexpected {
            number,
            during: "authentication",
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_in_the_request_and_nowhere_else() {
        let password = Password::new("hunter2-canary".to_owned());
        assert!(!format!("{password:?}").contains("canary"));
        let [service, login] = requests("me", &password);
        assert_eq!(service, b"\x05\0\0\0\x0cssh-userauth");
        assert_eq!(
            login,
            b"\x32\0\0\0\x02me\0\0\0\x0essh-connection\0\0\0\x08password\0\0\0\0\x0ehunter2-canary"
        );
    }

    #[test]
    fn answers() {
        assert_eq!(receive(b"\x06\0\0\0\x0cssh-userauth").unwrap(), Progress::Waiting);
        assert_eq!(receive(&[52]).unwrap(), Progress::Done);
        assert!(matches!(receive(&[51]), Err(Fault::AuthFailed)));
        for bad in [&b""[..], b"\x06\0\0\0\x01x", b"\x06\0\0", &[90]] {
            assert!(matches!(receive(bad), Err(Fault::Protocol(_))), "{bad:?}");
        }
    }
}
