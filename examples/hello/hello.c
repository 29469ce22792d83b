#include <stdio.h>
#include <string.h>

/* The whole image is this one static program: it greets, and while the image is built it writes its own greeting. */
int main(int argc, char **argv) {
    static const char path[] = "/greeting";
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        FILE *f = fopen(path, "w");
        if (!f) {
            perror(path);
            return 1;
        }
        fprintf(f, "Hello, %s! Built without root, without set-up.\n", argv[2]);
        return fclose(f) == 0 ? 0 : 1;
    }
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        return 1;
    }
    int c;
    while ((c = fgetc(f)) != EOF)
        putchar(c);
    return 0;
}
