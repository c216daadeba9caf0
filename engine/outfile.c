#define _GNU_SOURCE
#include "outfile.h"

#include <fcntl.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "system.h"

struct kg_outfile {
  char *path, *temporary; /* temporary is NULL once the file is in its place */
  int fd;
};

/* The file takes its name by renaming, which would replace a device by a file, and fail on a folder after all work. */
static int check_place(const char *path, kg_error *err)
{
  struct stat info;
  bool exists;
  const int code = kg_sys_stat(path, &info, &exists, err);
  if (code || !exists || S_ISREG(info.st_mode)) return code;
  return kg_fail(err, KG_ERR_IO, "%s: is %s, not a file", path, S_ISDIR(info.st_mode) ? "a directory" : "a device");
}

int kg_outfile_open(const char *path, kg_outfile **out, kg_error *err)
{
  static const char suffix[] = ".XXXXXX";
  int code = check_place(path, err);
  if (code) return code;
  const size_t length = strlen(path);
  kg_outfile *file = kg_alloc_array(1, sizeof *file);
  if (!file) return kg_fail_memory(err, sizeof *file, "a file writer");
  file->fd = -1;
  file->path = kg_copy_bytes(path, length);
  char *temporary = kg_alloc(length + sizeof suffix);
  if (!file->path || !temporary) {
    kg_free(temporary);
    kg_outfile_close(file);
    return kg_fail_memory(err, 2 * length + sizeof suffix, "a path");
  }
  memcpy(temporary, path, length);
  memcpy(temporary + length, suffix, sizeof suffix);
  code = kg_sys_mkostemp(path, temporary, &file->fd, err);
  if (code) {
    kg_free(temporary);
    kg_outfile_close(file);
    return code;
  }
  file->temporary = temporary;
  *out = file;
  return KG_OK;
}

int kg_outfile_write(kg_outfile *file, const void *bytes, size_t n_bytes, kg_error *err)
{
  return kg_sys_write(file->path, file->fd, bytes, n_bytes, err);
}

/* After the rename, so that the name survives a power cut too; a file system that cannot do it has done its best. */
static void sync_folder(const char *path)
{
  const char *slash = strrchr(path, '/');
  char *folder = slash ? kg_copy_bytes(path, (size_t)(slash - path) + 1) : kg_copy_bytes(".", 1);
  int fd;
  if (folder && !kg_sys_open(folder, O_RDONLY | O_DIRECTORY, &fd, NULL)) {
    kg_sys_fsync(folder, fd, NULL);
    kg_sys_close(fd);
  }
  kg_free(folder);
}

int kg_outfile_commit(kg_outfile *file, mode_t mode, kg_error *err)
{
  int code = kg_sys_fchmod(file->path, file->fd, mode, err);
  if (!code) code = kg_sys_fsync(file->path, file->fd, err);
  if (!code) code = kg_sys_rename(file->temporary, file->path, err);
  if (code) return code;
  kg_free(file->temporary);
  file->temporary = NULL;
  sync_folder(file->path);
  return KG_OK;
}

const char *kg_outfile_path(const kg_outfile *file) { return file->path; }

void kg_outfile_close(kg_outfile *file)
{
  if (!file) return;
  if (file->fd >= 0) kg_sys_close(file->fd);
  if (file->temporary) kg_sys_unlink(file->temporary);
  kg_free(file->temporary);
  kg_free(file->path);
  kg_free(file);
}
