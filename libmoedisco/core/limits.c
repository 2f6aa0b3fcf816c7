/* core/limits.c - control groups. A container usually sees its own group as the root of the tree; where it does not, the group
 * named in /proc/self/cgroup is not there, and the root stands for it. */
#include "limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 4096 };

/* First line of the file; 0 when there is none. */
static int read_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    const int there = fgets(out, (int)size, f) != NULL;
    fclose(f);
    return there;
}

/* Whether `name` is one of a list such as "cpu,cpuacct". */
static int is_listed(const char *list, const char *name)
{
    const size_t size = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == size && !memcmp(p, name, size)) return 1;
    return 0;
}

/* The group of this process below the mount of `controller` ("" = version 2), without a slash at its end; "" for the root. */
static void find_group(const char *root, const char *controller, char *out)
{
    char path[PATH_SIZE], line[PATH_SIZE];
    *out = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) { /* number:controllers:group */
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group) continue;
        list++, *group++ = 0;
        if (*controller ? !is_listed(list, controller) : *list != 0) continue;
        group[strcspn(group, "\n")] = 0;
        size_t size = strlen(group);
        while (size > 0 && group[size - 1] == '/') size--;
        if (!strstr(group, "..")) snprintf(out, PATH_SIZE, "%.*s", (int)size, group);
        break;
    }
    if (f) fclose(f);
}

/* Calls one(directory, user) for the group's directory and every one above it, up to the mount. */
static void climb(const char *mount, char *group, void (*one)(const char *directory, void *user), void *user)
{
    char path[2 * PATH_SIZE];
    for (;;) {
        snprintf(path, sizeof path, "%s%s", mount, group);
        one(path, user);
        char *slash = strrchr(group, '/');
        if (!slash) return;
        *slash = 0;
    }
}

/* Climbs the trees of both versions. */
static void visit(const char *root, const char *controller, void (*one)(const char *directory, void *user), void *user)
{
    static const char *const mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    char mount[PATH_SIZE], group[PATH_SIZE];
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        snprintf(mount, sizeof mount, "%s%s", root, mounts[i]);
        find_group(root, "", group);
        climb(mount, group, one, user);
    }
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, controller);
    find_group(root, controller, group);
    climb(mount, group, one, user);
}

/* A whole number that begins the file, or -1. */
static int64_t read_number(const char *directory, const char *name)
{
    char path[3 * PATH_SIZE], line[64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (!read_line(path, line, sizeof line) || line[0] < '0' || line[0] > '9') return -1;
    return strtoll(line, NULL, 10);
}

static void tighten_cpus(const char *directory, void *user)
{
    int32_t *least = user;
    char path[3 * PATH_SIZE], line[64];
    int64_t quota = -1, period = -1;
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    if (read_line(path, line, sizeof line)) {
        char *end = line;
        if (line[0] >= '0' && line[0] <= '9') quota = strtoll(line, &end, 10), period = strtoll(end, NULL, 10);
    } else {
        quota = read_number(directory, "cpu.cfs_quota_us");
        period = read_number(directory, "cpu.cfs_period_us");
    }
    if (quota <= 0 || period <= 0) return;
    const int64_t cpus = quota / period + (quota % period != 0);
    if (cpus < INT32_MAX && (!*least || cpus < *least)) *least = (int32_t)cpus;
}

static void tighten_memory(const char *directory, void *user)
{
    static const char *const names[] = {"memory.max", "memory.high", "memory.limit_in_bytes"};
    int64_t *least = user;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const int64_t bytes = read_number(directory, names[i]);
        /* version 1 says "none" by a number near 2^63 */
        if (bytes > 0 && bytes < INT64_MAX / 2 && (!*least || bytes < *least)) *least = bytes;
    }
}

int32_t moedi_limits_cpus(const char *root)
{
    int32_t least = 0;
    visit(root, "cpu", tighten_cpus, &least);
    return least;
}

int64_t moedi_limits_memory(const char *root)
{
    int64_t least = 0;
    visit(root, "memory", tighten_memory, &least);
    return least;
}
