// Calls llama.cpp's own downloader, as it lies in the xllamacpp wheel: the list of a repo's files
// (hf_cache::get_repo_files), then each file (common_download_file_single), then its place in the
// cache. The declarations are those of llama.cpp's common/hf-cache.h and common/download.h.
#include <cstdio>
#include <string>
#include <vector>

namespace hf_cache {
struct hf_file {
    std::string path, url, local_path, final_path, oid, repo_id;
};
std::vector<hf_file> get_repo_files(const std::string &repo_id, const std::string &token);
std::string finalize_file(const hf_file &file);
}  // namespace hf_cache

struct common_download_opts {
    std::string bearer_token;
    std::vector<std::pair<std::string, std::string>> headers;
    char rest[256] = {};  // switches, all off, and no callback
};
int common_download_file_single(const std::string &url, const std::string &path,
                                const common_download_opts &opts, bool skip_etag);

// Downloads `repo`; for each file a line: HTTP status, path, where it lies in the cache.
extern "C" int download_repo(const char *repo, const char *token) {
    auto files = hf_cache::get_repo_files(repo, token);
    common_download_opts opts;
    opts.bearer_token = token;
    for (const auto &file : files) {
        int status = common_download_file_single(file.url, file.local_path, opts, true);
        std::string place = hf_cache::finalize_file(file);
        std::printf("%d\t%s\t%s\n", status, file.path.c_str(), place.c_str());
    }
    std::fflush(stdout);
    return (int)files.size();
}
