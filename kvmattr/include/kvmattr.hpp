/* kvmattr from C++ (17 or later): owners that release what they hold, exceptions in place of error codes.
 *
 * Header only, over kvmattr.h; what that says of costs and threads holds here too. An Error carries the code, its what()
 * the code's text. Callbacks are callables that return true to go on; what they throw ends the walk and comes out of it.
 *
 *     kvmattr::Map map(1 << 24);                   // a 64 GiB guest
 *     map.write(0, 512, 1);
 *     kvmattr::Snapshot before = map.snapshot();
 *     map.restore(before);
 */
#ifndef KVMATTR_HPP
#define KVMATTR_HPP

#include "kvmattr.h"

#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace kvmattr {

enum class Operation : int { WRITE = KVMATTR_WRITE, OR = KVMATTR_OR, AND = KVMATTR_AND };

class Error : public std::runtime_error {
public:
    explicit Error(int code) : std::runtime_error(kvmattr_error_text(code)), code_(code) {}
    int code() const noexcept { return code_; }

private:
    int code_;
};

inline int checked(int result)
{
    if (result < 0)
        throw Error(result);
    return result;
}

namespace detail {

/* A callable behind a C callback: an exception must not pass through the library's frames. */
template <typename Record, typename Callable> struct Call {
    Callable &callable;
    std::exception_ptr thrown;

    static int call(void *context, const Record *record) noexcept
    {
        auto *self = static_cast<Call *>(context);
        try {
            return self->callable(*record) ? 0 : 1;
        } catch (...) {
            self->thrown = std::current_exception();
            return 1;
        }
    }

    void finish(int result)
    {
        if (thrown)
            std::rethrow_exception(thrown);
        checked(result);
    }
};

} // namespace detail

class Snapshot;
class Map;

/* What can be asked of every map; it owns nothing. */
class View {
public:
    explicit View(const kvmattr_map *map) noexcept : map_(map) {}

    const kvmattr_map *handle() const noexcept { return map_; }
    std::uint64_t pages() const noexcept { return kvmattr_pages(map_); }
    std::uint64_t version() const
    {
        const std::uint64_t *word = kvmattr_version(map_);
        if (word == nullptr)
            throw Error(KVMATTR_BAD_MAP);
        return kvmattr_load(word);
    }

    std::uint8_t get(std::uint64_t gfn) const { return static_cast<std::uint8_t>(checked(kvmattr_get(map_, gfn))); }
    void take(const std::uint64_t *gfns, std::uint8_t *attributes, std::size_t count) const
    {
        checked(kvmattr_take(map_, gfns, attributes, count));
    }
    bool all(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes, std::uint8_t mask = 0xff) const
    {
        return checked(kvmattr_all(map_, start, stop, attributes, mask)) != 0;
    }
    kvmattr_run run(std::uint64_t gfn) const
    {
        kvmattr_run run;
        checked(kvmattr_run_at(map_, gfn, &run));
        return run;
    }

    /* callable(const kvmattr_run &) -> bool, for each run of the range. */
    template <typename Callable> void runs(std::uint64_t start, std::uint64_t stop, Callable &&callable) const
    {
        using Call = detail::Call<kvmattr_run, std::remove_reference_t<Callable>>;
        Call call{callable, nullptr};
        call.finish(kvmattr_runs(map_, start, stop, Call::call, &call));
    }

    /* callable(const kvmattr_change &) -> bool, for each run in which this map differs from an earlier state. */
    template <typename Callable>
    void diff(const View &before, std::uint64_t start, std::uint64_t stop, Callable &&callable) const
    {
        using Call = detail::Call<kvmattr_change, std::remove_reference_t<Callable>>;
        Call call{callable, nullptr};
        call.finish(kvmattr_diff(map_, before.map_, start, stop, Call::call, &call));
    }

    inline Snapshot snapshot() const;
    inline Map copy() const;

protected:
    const kvmattr_map *map_;
};

class Snapshot : public View {
public:
    Snapshot(Snapshot &&other) noexcept : View(std::exchange(other.map_, nullptr)) {}
    Snapshot &operator=(Snapshot &&other) noexcept
    {
        std::swap(map_, other.map_);
        return *this;
    }
    ~Snapshot()
    {
        if (map_ != nullptr)
            kvmattr_release(map_);
    }

private:
    friend class View;
    explicit Snapshot(const kvmattr_map *snapshot) noexcept : View(snapshot) {}
};

class Map : public View {
public:
    explicit Map(std::uint64_t pages, std::uint8_t attributes = 0) : View(nullptr), owned_(true)
    {
        kvmattr_map *map;
        checked(kvmattr_create(pages, attributes, &map));
        map_ = map;
    }

    /* The map of a Python object, or of other C code, which keeps owning it. */
    static Map borrow(kvmattr_map *map) noexcept { return Map(map, false); }

    Map(Map &&other) noexcept : View(std::exchange(other.map_, nullptr)), owned_(other.owned_) {}
    Map &operator=(Map &&other) noexcept
    {
        std::swap(map_, other.map_);
        std::swap(owned_, other.owned_);
        return *this;
    }
    ~Map()
    {
        if (map_ != nullptr && owned_)
            kvmattr_destroy(handle());
    }

    kvmattr_map *handle() const noexcept { return const_cast<kvmattr_map *>(map_); }

    /* Each of these tells whether any page changed. */
    bool write(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes)
    {
        return checked(kvmattr_write(handle(), start, stop, attributes)) != 0;
    }
    bool or_(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes)
    {
        return checked(kvmattr_or(handle(), start, stop, attributes)) != 0;
    }
    bool and_(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes)
    {
        return checked(kvmattr_and(handle(), start, stop, attributes)) != 0;
    }
    bool update(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes, Operation operation,
                std::uint8_t mask = 0xff)
    {
        return checked(kvmattr_update(handle(), start, stop, attributes, static_cast<int>(operation), mask)) != 0;
    }

    /* The same, then callable(const kvmattr_change &) -> bool for each run that changed. */
    template <typename Callable>
    void update(std::uint64_t start, std::uint64_t stop, std::uint8_t attributes, Operation operation,
                std::uint8_t mask, Callable &&callable)
    {
        using Call = detail::Call<kvmattr_change, std::remove_reference_t<Callable>>;
        Call call{callable, nullptr};
        call.finish(kvmattr_update_changes(handle(), start, stop, attributes, static_cast<int>(operation), mask,
                                           Call::call, &call));
    }

    void restore(const View &source) { checked(kvmattr_restore(handle(), source.handle())); }
    void share() { checked(kvmattr_share(handle())); }
    void unshare() { checked(kvmattr_unshare(handle())); }

private:
    friend class View;
    Map(kvmattr_map *map, bool owned) noexcept : View(map), owned_(owned) {}
    bool owned_;
};

inline Snapshot View::snapshot() const
{
    const kvmattr_map *snapshot;
    checked(kvmattr_snapshot(map_, &snapshot));
    return Snapshot(snapshot);
}

inline Map View::copy() const
{
    kvmattr_map *copy;
    checked(kvmattr_copy(map_, &copy));
    return Map(copy, true);
}

/* A place in a map, for one thread; the map must outlive it. */
class Cursor {
public:
    explicit Cursor(const View &map) : cursor_(nullptr) { checked(kvmattr_cursor_open(map.handle(), &cursor_)); }
    Cursor(Cursor &&other) noexcept : cursor_(std::exchange(other.cursor_, nullptr)) {}
    Cursor &operator=(Cursor &&other) noexcept
    {
        std::swap(cursor_, other.cursor_);
        return *this;
    }
    ~Cursor()
    {
        if (cursor_ != nullptr)
            kvmattr_cursor_close(cursor_);
    }

    std::uint8_t get(std::uint64_t gfn)
    {
        return static_cast<std::uint8_t>(checked(kvmattr_cursor_get(cursor_, gfn)));
    }

private:
    kvmattr_cursor *cursor_;
};

} // namespace kvmattr

#endif /* KVMATTR_HPP */
