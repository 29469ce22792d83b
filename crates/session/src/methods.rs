//! Names that both ends must spell the same: methods and metadata keys.

/// Session id of a `Control/Session` request.
pub const ID: &str = "x-docker-expose-session-uuid";
/// Legacy name, unused.
pub const NAME: &str = "x-docker-expose-session-name";
/// Shared key: names the client's directories across sessions.
pub const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
/// A method that the client offers; repeated.
pub const METHOD: &str = "x-docker-expose-session-grpc-method";
/// Milliseconds for health interval and timeout; optional.
pub const HEALTH_TIMEOUT: &str = "x-buildkit-session-health-custom-timeout";

/// Reads a directory.
pub const FILE_SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// Takes an export.
pub const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// User name and password for a registry.
pub const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
/// A registry token fetched by the client.
pub const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
/// The key that stands for a client's right to a token.
pub const TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
/// Proves the right to a token.
pub const VERIFY_TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";
/// A build secret.
pub const SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
/// Whether there is such an ssh agent.
pub const CHECK_AGENT: &str = "/moby.sshforward.v1.SSH/CheckAgent";
/// One connection to an ssh agent.
pub const FORWARD_AGENT: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// A stream piped into the client.
pub const UPLOAD: &str = "/moby.upload.v1.Upload/Pull";
/// Liveness.
pub const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Looks a blob up.
pub const CONTENT_INFO: &str = "/containerd.services.content.v1.Content/Info";
/// Reads a blob.
pub const CONTENT_READ: &str = "/containerd.services.content.v1.Content/Read";
/// Writes a blob.
pub const CONTENT_WRITE: &str = "/containerd.services.content.v1.Content/Write";

/// Name of the local directory asked for.
pub const DIR_NAME: &str = "dir-name";
/// Include patterns; repeated.
pub const INCLUDE: &str = "include-patterns";
/// Exclude patterns; repeated.
pub const EXCLUDE: &str = "exclude-patterns";
/// Paths whose links are followed; repeated.
pub const FOLLOW: &str = "followpaths";
/// Index of the exporter in the build request.
pub const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
/// Prefix of an exporter's response entries.
pub const EXPORTER_METADATA: &str = "exporter-md-";
/// Set for local exports that hold all platforms in one stream.
pub const EXPORTER_MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
/// Name of the content store asked for.
pub const STORE_ID: &str = "buildkit-attachable-store-id";
/// Name of the ssh agent asked for.
pub const SSH_ID: &str = "buildkit.ssh.id";

/// Escapes a value as in a URL's query: what is not a letter, a digit or one of `-_.~` as `%XX`, a space as `+`.
pub fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Takes [`escape`] back; `None` if `value` is not an escaped text.
pub fn unescape(value: &str) -> Option<String> {
    let mut bytes = value.bytes();
    let mut text = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                // Two hexadecimal digits are below 256.
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_values_come_back() {
        for text in ["", "a b", "ä/ö*", "100%+1", "!x\ty"] {
            assert_eq!(unescape(&escape(text)).as_deref(), Some(text));
        }
        assert_eq!(escape("ä b+c"), "%C3%A4+b%2Bc");
        for bad in ["%", "%1", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None);
        }
    }
}
