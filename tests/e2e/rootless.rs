//! Point 4: user namespaces with sub-IDs, the own ID alone, and real root.

use crate::harness::{Home, User, bud, read, run};

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

#[test]
fn ranges_by_name_and_by_number_are_joined() {
    let home = Home::new(User::ranges());
    let context = home.dockerfile(
        "FROM busybox\nRUN cat /proc/self/uid_map > /map && touch /f && chown 65536:65536 /f && stat -c %u:%g /f > /owner\n",
    );
    let tree = home.tree(&[], &context);
    assert_eq!(read(tree.join("owner")), "65536:65536\n");
    let map: Vec<Vec<u64>> =
        read(tree.join("map")).lines().map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    assert_eq!(map.len(), 4, "{map:?}");
    assert_eq!(map[0], [0, u64::from(home.user.uid), 1]);
    for line in &map[1..] {
        assert!((3_100_000..3_400_000).contains(&line[1]), "{map:?}");
    }
    assert_eq!(map.iter().map(|r| r[2]).sum::<u64>(), 65_537);
}

#[test]
fn too_few_sub_ids_mean_the_own_id_alone() {
    let home = Home::new(User::few());
    let context = home.dockerfile("FROM busybox\nRUN cat /proc/self/uid_map > /map\n");
    let out = home.path("o");
    home.build(&["-o", out.to_str().unwrap()], &context).ok().says(&[
        "own ID alone",
        "only 1000 of the 65536",
        "usermod --add-subuids",
    ]);
    assert_eq!(read(out.join("map")).lines().count(), 1);
}

#[test]
fn no_new_privs_means_the_own_id_alone() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN cat /proc/self/uid_map > /map\n");
    let out = home.path("o");
    let mut command = home.command("setpriv");
    command.arg("--no-new-privs").arg(bud()).args(["--progress", "plain", "-o"]).arg(&out).arg(&context);
    run(command).ok().says(&["own ID alone", "no_new_privs"]);
    assert_eq!(read(out.join("map")).lines().count(), 1);
}

#[test]
fn the_users_can_be_chosen() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN cat /proc/self/uid_map > /map\n");
    let lines = |args: &[&str]| read(home.tree(args, &context).join("map")).lines().count();
    assert_eq!(lines(&["--userns", "single"]), 1);
    // The idle daemon gives way to one with what is asked for; without a wish it stays.
    assert_eq!(lines(&["--userns=subids", "--no-cache"]), 2);
    home.bud(["daemon", "status"]).ok().says(&["with sub-IDs"]);
    assert_eq!(lines(&["--no-cache"]), 2);
    home.bud(["daemon", "stop"]).ok();
    home.bud(["--userns=root", context.to_str().unwrap()]).fails_with(&["needs root"]);
    home.bud(["daemon", "start", "--userns", "single"]).ok().says(&["own ID alone"]);
    home.bud(["daemon", "start", "--userns", "subids"]).fails_with(&["bud daemon stop"]);

    let plain = Home::new(User::plain());
    let context = plain.dockerfile("FROM scratch\n");
    plain.bud(["--userns=subids", context.to_str().unwrap()]).fails_with(&["/etc/subuid", "usermod --add-subuids"]);
}
