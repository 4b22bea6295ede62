#include "tools/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

namespace fovea::tools {
namespace {

// The path that rename() may replace: symbolic links resolved, and nothing but a regular file (no device, no pipe)
// overwritten.
std::string RenameTarget(const std::string& path) {
  std::error_code error;
  // The current path first: of a relative path none of which exists, weakly_canonical() gives a relative one.
  const std::filesystem::path target = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  if (error) Refuse(path, "{}", error.message());
  const std::filesystem::file_status status = std::filesystem::symlink_status(target, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    Refuse(path, "exists and is not a regular file");
  }
  return target.string();
}

}  // namespace

void CheckOutputFiles(const std::vector<OutputFile>& files) {
  std::vector<std::string> targets;
  for (const OutputFile& file : files) {
    const std::string target = RenameTarget(file.path);
    if (access(std::filesystem::path(target).parent_path().c_str(), W_OK) != 0)
      Refuse(file.path, "{}", std::strerror(errno));
    if (std::find(targets.begin(), targets.end(), target) != targets.end())
      Refuse(file.path, "two outputs have this name");
    targets.push_back(target);
  }
}

void WriteOutputFiles(const std::vector<OutputFile>& files) {
  struct Pending {
    std::string temporary, target;
  };
  struct RemoveLeftovers {
    std::vector<Pending> files;
    ~RemoveLeftovers() {
      for (const Pending& file : files) unlink(file.temporary.c_str());
    }
  } pending;

  CheckOutputFiles(files);
  for (const OutputFile& output : files) {
    const std::string target = RenameTarget(output.path);
    const std::string temporary = fmt::format("{}.{}-{}.tmp", target, getpid(), pending.files.size());
    const File file(std::fopen(temporary.c_str(), "wbx"));  // x: only if it is new
    if (!file) Refuse(output.path, "{}", std::strerror(errno));
    pending.files.push_back({temporary, target});
    if (!output.write(file.get()) || std::fflush(file.get()) != 0) Refuse(output.path, "{}", std::strerror(errno));
  }
  for (size_t i = 0; i < pending.files.size(); ++i) {
    const Pending& file = pending.files[i];
    if (std::rename(file.temporary.c_str(), file.target.c_str()) != 0)
      Refuse(files[i].path, "{}", std::strerror(errno));
  }
}

}  // namespace fovea::tools
