use super::depended_on;

#[test]
fn what_each_version_of_a_package_depends_on() {
    let shown = "Package: linux-image-rt-amd64\nVersion: 6.1.192-3\n\
                 Depends: linux-image-6.1.0-57-rt-amd64 (= 6.1.192-3)\nDescription: Linux\n\n\
                 Package: linux-image-rt-amd64\nVersion: 6.1.176-1\n\
                 Depends: other (>= 2), linux-image-6.1.0-50-rt-amd64 (= 6.1.176-1), linux-image-any\n";
    let found = depended_on(shown, "linux-image-");
    let found: Vec<_> = found.iter().map(|package| (&*package.name, &*package.version)).collect();
    assert_eq!(
        found,
        [("linux-image-6.1.0-57-rt-amd64", "6.1.192-3"), ("linux-image-6.1.0-50-rt-amd64", "6.1.176-1")]
    );
    assert_eq!(depended_on("Package: linux\nVersion: 1\n", "linux-image-"), []);
}
