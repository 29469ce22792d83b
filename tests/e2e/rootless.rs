//! Point 4: user namespaces with sub-IDs, the own ID alone, and real root.

use crate::harness::{Home, User, read};

#[test]
fn with_sub_ids_the_user_is_root_and_sub_ids_follow() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN id -u > /uid && cat /proc/self/uid_map > /map && touch /f && chown 1000:50 /f && stat -c %u:%g /f > /owner\n",
    );
    let tree = home.tree(&[], &context);
    assert_eq!(read(tree.join("uid")), "0\n");
    assert_eq!(read(tree.join("owner")), "1000:50\n");
    let map: Vec<Vec<u64>> =
        read(tree.join("map")).lines().map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    assert_eq!(map[0], [0, u64::from(home.user.uid), 1]);
    assert_eq!(map[1][0], 1);
    assert_eq!(map.iter().map(|r| r[2]).sum::<u64>(), 65_537);
    let image = home.image(&[], &context);
    assert!(image.layer_listing(image.layers() - 1).contains("1000/50"), "owners reach the layer");
}

#[test]
fn without_sub_ids_the_own_id_is_enough() {
    let home = Home::new(User::plain());
    let context =
        home.context(&[("Dockerfile", "FROM busybox\nCOPY a /a\nRUN id -u > /uid && cat /a >> /uid\n"), ("a", "A")]);
    let out = home.path("o");
    // The first start says what is missing and the command that mends it.
    let ran = home.build(&["-o", out.to_str().unwrap()], &context).ok();
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("usermod --add-subuids") || said.contains("apt-get install uidmap"), "{ran}");
    assert_eq!(read(out.join("uid")), "0\nA");
}

#[test]
fn real_root_builds_with_the_same_code() {
    let home = Home::new(User { name: "root", uid: 0, gid: 0 });
    let context =
        home.dockerfile("FROM busybox\nRUN id -u > /uid && touch /f && chown 5:6 /f && stat -c %u:%g /f > /owner\n");
    let tree = home.tree(&[], &context);
    assert_eq!(read(tree.join("owner")), "5:6\n");
}
