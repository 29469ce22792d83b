/*
 * What the machine alone needs for the work of a build step: no cache keys, no records, no protocol.
 *
 *   floors steps N LOWER WORK ARGV…   N times: new namespaces, an overlay on what came before, exec, wait. Prints seconds.
 *   floors stat DIR                   stats every file below DIR. Prints seconds.
 *   floors copy SRC DST               copies a tree. Prints seconds.
 *
 * gcc -O2 -o floors floors.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <fts.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

static int step(void *arg) {
    char **argv = arg;
    char *env[] = {"PATH=/bin:/usr/bin", NULL};
    must(chdir("root") == 0, "chdir");
    mkdir("proc", 0755);
    must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0, "proc");
    must(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
    must(umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "leave the old root");
    execve(argv[0], argv, env);
    must(0, argv[0]);
    return 1;
}

static int steps(int count, const char *lower, const char *work, char **argv) {
    static char stack[1 << 16] __attribute__((aligned(16)));
    char base[4096], map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    mkdir(work, 0755);
    must(realpath(lower, base) != NULL && chdir(work) == 0, "paths");
    must(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, "unshare");
    snprintf(map, sizeof map, "0 %u 1", uid);
    write_file("/proc/self/uid_map", map);
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", gid);
    write_file("/proc/self/gid_map", map);
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
    mkdir("root", 0755);
    double start = seconds();
    for (int n = 0; n < count; n++) {
        char options[4096 * 2], name[32];
        int length = 0, status;
        snprintf(name, sizeof name, "u%d", n);
        must(mkdir(name, 0755) == 0, name);
        snprintf(name, sizeof name, "w%d", n);
        must(mkdir(name, 0755) == 0, name);
        length += snprintf(options, sizeof options, "userxattr,upperdir=u%d,workdir=w%d,lowerdir=", n, n);
        for (int below = n - 1; below >= 0; below--)
            length += snprintf(options + length, sizeof options - (size_t)length, "u%d:", below);
        snprintf(options + length, sizeof options - (size_t)length, "%s", base);
        must(mount("overlay", "root", "overlay", 0, options) == 0, "overlay");
        pid_t pid = clone(step, stack + sizeof stack, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD, argv);
        must(pid > 0 && waitpid(pid, &status, 0) == pid, "clone");
        if (status != 0)
            exit(1);
        must(umount2("root", 0) == 0, "umount");
    }
    printf("%.6f\n", seconds() - start);
    return 0;
}

static void copy_file(const char *from, const char *to, mode_t mode) {
    static char buffer[1 << 18];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, mode);
    must(in >= 0 && out >= 0, to);
    ssize_t n;
    off_t copied = 0;
    while ((n = copy_file_range(in, NULL, out, NULL, 1 << 27, 0)) > 0)
        copied += n;
    if (n < 0 && copied == 0)
        while ((n = read(in, buffer, sizeof buffer)) > 0)
            must(write(out, buffer, (size_t)n) == n, to);
    close(in);
    close(out);
}

static int walk(char *from, const char *to) {
    char *roots[] = {from, NULL};
    double start = seconds();
    FTS *tree = fts_open(roots, FTS_PHYSICAL, NULL);
    must(tree != NULL, from);
    for (FTSENT *e; (e = fts_read(tree)) != NULL;) {
        if (to == NULL)
            continue;
        char path[8192];
        snprintf(path, sizeof path, "%s%s", to, e->fts_path + strlen(from));
        if (e->fts_info == FTS_D)
            must(mkdir(path, 0755) == 0, path);
        else if (e->fts_info == FTS_F)
            copy_file(e->fts_path, path, e->fts_statp->st_mode & 07777);
    }
    fts_close(tree);
    printf("%.6f\n", seconds() - start);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 5 && strcmp(argv[1], "steps") == 0)
        return steps(atoi(argv[2]), argv[3], argv[4], argv + 5);
    if (argc == 3 && strcmp(argv[1], "stat") == 0)
        return walk(argv[2], NULL);
    if (argc == 4 && strcmp(argv[1], "copy") == 0)
        return walk(argv[2], argv[3]);
    fprintf(stderr, "usage: see the head of floors.c\n");
    return 2;
}
