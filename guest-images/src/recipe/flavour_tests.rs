use super::{FLAVOURS, is_known, parse, queues_irq_work_twice};

#[test]
fn an_image_is_named_by_its_recipe_and_a_kernel_that_is_not_the_default() {
    let named = |name: &str| parse(name).map(|(recipe, flavour)| (recipe.name, flavour.package));
    assert_eq!(named("busybox"), Some(("busybox", "linux-image-cloud-amd64")));
    assert_eq!(named("busybox-generic"), Some(("busybox", "linux-image-amd64")));
    assert_eq!(named("redis-rt"), Some(("redis", "linux-image-rt-amd64")));
    // One image, one name.
    for name in ["busybox-cloud", "busybox-", "-generic", "generic", "busybox-generic-rt", "", "minikv"] {
        assert!(!is_known(name), "{name:?}");
    }
    assert_eq!(FLAVOURS[0].name, "cloud");
}

#[test]
fn versions_of_the_rt_kernel_that_hang() {
    for hangs in ["6.1.191-1", "6.1.192-3", "6.1.200-1~bpo", "6.1.192"] {
        assert!(queues_irq_work_twice(hangs), "{hangs}");
    }
    for starts in ["6.1.176-1", "6.1.190-1", "6.1.19-1", "6.12.48-1", "6.10.192-1", "5.10.200-1", "6.1.", ""]
    {
        assert!(!queues_irq_work_twice(starts), "{starts}");
    }
}
