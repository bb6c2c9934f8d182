//! Names of images: `registry.example:5000/team/app:1.35@sha256:...` and its parts.

/// The parts of an image's name, by the Agent's tag names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageName {
    /// `image_name`: registry and path, without tag and digest.
    pub long: String,
    /// The registry, if the name has two slashes or more; otherwise empty.
    pub registry: String,
    /// `short_image`: the last element of the path.
    pub short: String,
    /// `image_tag`; empty when the name has none.
    pub tag: String,
}

impl ImageName {
    /// Splits a name. A registry's port is no tag: a tag stands behind the last slash. The digest
    /// is cut off.
    pub fn new(name: &str) -> Self {
        let name = without_digest(name);
        let path = name.rfind('/').map_or(0, |slash| slash + 1);
        let (long, tag) = match name[path..].rfind(':') {
            Some(colon) => (&name[..path + colon], &name[path + colon + 1..]),
            None => (name, ""),
        };
        let registry = match long.split_once('/') {
            Some((registry, rest)) if rest.contains('/') => registry,
            _ => "",
        };
        Self {
            long: long.to_owned(),
            registry: registry.to_owned(),
            short: long.rsplit('/').next().unwrap_or(long).to_owned(),
            tag: tag.to_owned(),
        }
    }

    /// `docker_image`: the long name and the tag.
    pub fn full(&self) -> String {
        if self.tag.is_empty() { self.long.clone() } else { format!("{}:{}", self.long, self.tag) }
    }
}

/// Whether a container names its image by nothing but a digest, so that the engine has to be asked
/// for a name.
pub fn is_nameless(image: &str) -> bool {
    image.starts_with("sha256:") || is_hex(image, 64) || without_digest(image).is_empty()
}

/// The name of an image as the engine's answer tells it: its first tag, else the name of a digest.
pub fn name_of(repo_tags: &[String], repo_digests: &[String]) -> Option<String> {
    let usable = |name: &&str| !name.is_empty() && !name.starts_with("<none>");
    let tag = repo_tags.iter().map(String::as_str).find(usable);
    let digest = || repo_digests.iter().map(|name| without_digest(name)).find(usable);
    tag.or_else(digest).map(str::to_owned)
}

fn without_digest(name: &str) -> &str {
    name.split_once('@').map_or(name, |(name, _)| name)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_split() {
        for (name, long, registry, short, tag) in [
            ("redis", "redis", "", "redis", ""),
            ("redis:7", "redis", "", "redis", "7"),
            ("library/redis:7", "library/redis", "", "redis", "7"),
            (
                "registry.example.test:5000/team/bbfixture:1.35",
                "registry.example.test:5000/team/bbfixture",
                "registry.example.test:5000",
                "bbfixture",
                "1.35",
            ),
            ("localhost:5000/app", "localhost:5000/app", "", "app", ""),
            ("a/b/c", "a/b/c", "a", "c", ""),
            ("app:1@sha256:05c2", "app", "", "app", "1"),
            ("app@sha256:05c2", "app", "", "app", ""),
            ("", "", "", "", ""),
            (":", "", "", "", ""),
            ("/", "/", "", "", ""),
        ] {
            let image = ImageName::new(name);
            let parts = (&*image.long, &*image.registry, &*image.short, &*image.tag);
            assert_eq!(parts, (long, registry, short, tag), "{name}");
        }
    }

    #[test]
    fn a_digest_alone_is_no_name() {
        let id = "05c2109dd252d861ffce30c2f2f6a2d191349f5ef1c86d7f7cac61af75f7254c";
        for (name, nameless) in [
            (format!("sha256:{id}"), true),
            (id.to_owned(), true),
            (format!("app@sha256:{id}"), false),
            ("app".to_owned(), false),
            (String::new(), true),
        ] {
            assert_eq!(is_nameless(&name), nameless, "{name}");
        }
    }

    #[test]
    fn the_engine_tells_a_name() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (tags, digests, name) in [
            (&["a:1", "b:2"][..], &["c@sha256:1"][..], Some("a:1")),
            (&["<none>:<none>"], &["c@sha256:1"], Some("c")),
            (&[], &["<none>@<none>"], None),
            (&[], &[], None),
        ] {
            assert_eq!(name_of(&list(tags), &list(digests)).as_deref(), name);
        }
    }

    proptest! {
        #[test]
        fn what_is_put_together_is_taken_apart(
            registry in "[a-z]{1,8}\\.test(:[0-9]{1,4})?",
            path in "[a-z]{1,8}",
            short in "[a-z]{1,8}",
            tag in "[A-Za-z0-9_.-]{1,8}",
        ) {
            let long = format!("{registry}/{path}/{short}");
            let image = ImageName::new(&format!("{long}:{tag}@sha256:00"));
            prop_assert_eq!(image.full(), format!("{}:{}", &long, &tag));
            prop_assert_eq!(image, ImageName { long, registry, short, tag });
        }
    }
}
