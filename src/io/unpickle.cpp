#include "io/unpickle.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <limits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/Functions.h>

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& problem) { throw UnpickleError(problem); }

struct Node;
using Nodes = std::vector<Node*>;

struct Tuple {
  Nodes items;
};
struct List {
  Nodes items;
};
struct Dict {
  Nodes items;  // key, value, key, value …
};
// A name of Python's, `module.name`.
struct Global {
  std::string name;
};
// A storage that a tensor will refer to.
struct Storage {
  at::ScalarType type;
  at::Tensor bytes;
};

// A value of the pickle. Values may refer to each other in any way, themselves included; the machine owns them all.
struct Node {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Tuple, List, Dict, Global, Storage, at::Tensor>
      value;
};

constexpr std::array kStorages{std::pair{"torch.DoubleStorage", at::kDouble},
                               std::pair{"torch.FloatStorage", at::kFloat},
                               std::pair{"torch.HalfStorage", at::kHalf},
                               std::pair{"torch.BFloat16Storage", at::kBFloat16},
                               std::pair{"torch.LongStorage", at::kLong},
                               std::pair{"torch.IntStorage", at::kInt},
                               std::pair{"torch.ShortStorage", at::kShort},
                               std::pair{"torch.CharStorage", at::kChar},
                               std::pair{"torch.ByteStorage", at::kByte},
                               std::pair{"torch.BoolStorage", at::kBool},
                               std::pair{"torch.ComplexFloatStorage", at::kComplexFloat},
                               std::pair{"torch.ComplexDoubleStorage", at::kComplexDouble}};

at::ScalarType storage_type(const std::string& name) {
  const auto* found =
      std::find_if(kStorages.begin(), kStorages.end(), [&](const auto& one) { return one.first == name; });
  if (found == kStorages.end()) fail("has a storage of the unknown kind '" + name + "'");
  return found->second;
}

[[noreturn]] void fail_foreign(const std::string& name) {
  fail("needs '" + name + "' of Python's, which Tandem does not run");
}

// Carries out the operations of a pickle, one after the other, on a stack.
class Machine {
 public:
  Machine(std::string_view pickle, const FindStorage& find_storage) : rest_(pickle), find_storage_(find_storage) {}

  const Node& run() {
    for (;;) {
      const auto opcode = take<unsigned char>();
      if (opcode == '.') break;
      if (!execute_constant(opcode) && !execute_container(opcode) && !execute_reference(opcode))
        fail("has a pickle with an operation that is not known: " + std::to_string(opcode));
    }
    return *pop();
  }

 private:
  // ---- bytes

  std::string_view take_bytes(std::uint64_t count) {
    if (count > rest_.size()) fail("has a pickle that is cut off");
    const auto bytes = rest_.substr(0, static_cast<std::size_t>(count));
    rest_.remove_prefix(bytes.size());
    return bytes;
  }

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, take_bytes(sizeof value).data(), sizeof value);
    return value;
  }

  std::string take_line() {
    const auto end = rest_.find('\n');
    if (end == std::string_view::npos) fail("has a pickle that is cut off");
    std::string line(take_bytes(end));
    take_bytes(1);
    return line;
  }

  // ---- the stack, where null is a mark

  template <class T>
  void push(T value) {
    stack_.push_back(&nodes_.emplace_back(Node{std::move(value)}));
  }

  Node* pop() {
    Node* node = &top();
    stack_.pop_back();
    return node;
  }

  template <class T>
  T& pop_as(const char* kind) {
    return as<T>(*pop(), kind);
  }

  template <class T>
  static T& as(Node& node, const char* kind) {
    if (auto* value = std::get_if<T>(&node.value)) return *value;
    if (const auto* global = std::get_if<Global>(&node.value)) fail_foreign(global->name);
    fail(std::string("has a pickle with another value where ") + kind + " should be");
  }

  // What lies above the last mark, which goes too.
  Nodes pop_to_mark() {
    const auto mark = std::find(stack_.rbegin(), stack_.rend(), nullptr);
    if (mark == stack_.rend()) fail("has a pickle that goes back to a mark where there is none");
    Nodes items(mark.base(), stack_.end());
    stack_.erase(mark.base() - 1, stack_.end());
    return items;
  }

  Nodes pop_items(std::size_t count) {
    Nodes items(count);
    for (std::size_t i = count; i-- > 0;) items[i] = pop();
    return items;
  }

  Node& top() {
    if (stack_.empty() || !stack_.back()) fail("has a pickle that takes a value where there is none");
    return *stack_.back();
  }

  template <class Container>
  void extend_top(const Nodes& items, const char* kind) {
    Nodes& all = as<Container>(top(), kind).items;
    all.insert(all.end(), items.begin(), items.end());
  }

  // ---- constants

  bool execute_constant(unsigned char opcode) {
    switch (opcode) {
      case 'N': push(std::monostate()); return true;
      case 0x88: push(true); return true;
      case 0x89: push(false); return true;
      case 'J': push(std::int64_t{take<std::int32_t>()}); return true;
      case 'K': push(std::int64_t{take<std::uint8_t>()}); return true;
      case 'M': push(std::int64_t{take<std::uint16_t>()}); return true;
      case 0x8a: push_long(take_bytes(take<std::uint8_t>())); return true;
      case 'G': push_double(); return true;
      case 'X': push(std::string(take_bytes(take<std::uint32_t>()))); return true;
      case 0x8c: push(std::string(take_bytes(take<std::uint8_t>()))); return true;
      case 0x8d: push(std::string(take_bytes(take<std::uint64_t>()))); return true;
      default: return false;
    }
  }

  void push_long(std::string_view bytes) {
    if (bytes.size() > 8) fail("has a whole number of more than 64 bits");
    const bool negative = !bytes.empty() && (bytes.back() & 0x80) != 0;
    std::int64_t number = negative ? -1 : 0;
    std::memcpy(&number, bytes.data(), bytes.size());
    push(number);
  }

  void push_double() {
    const std::uint64_t bits = __builtin_bswap64(take<std::uint64_t>());
    double number;
    std::memcpy(&number, &bits, sizeof number);
    push(number);
  }

  // ---- containers

  bool execute_container(unsigned char opcode) {
    switch (opcode) {
      case '}': push(Dict()); return true;
      case ']': push(List()); return true;
      case ')': push(Tuple()); return true;
      case 0x85: push(Tuple{pop_items(1)}); return true;
      case 0x86: push(Tuple{pop_items(2)}); return true;
      case 0x87: push(Tuple{pop_items(3)}); return true;
      case '(': stack_.push_back(nullptr); return true;
      case 't': push(Tuple{pop_to_mark()}); return true;
      case 'l': push(List{pop_to_mark()}); return true;
      case 'd': push(Dict{pop_to_mark()}); return true;
      case 'a': extend_top_with_last<List>(1, "a list"); return true;
      case 's': extend_top_with_last<Dict>(2, "a dict"); return true;
      case 'e': extend_top<List>(pop_to_mark(), "a list"); return true;
      case 'u': extend_top<Dict>(pop_to_mark(), "a dict"); return true;
      default: return false;
    }
  }

  template <class Container>
  void extend_top_with_last(std::size_t count, const char* kind) {
    const Nodes items = pop_items(count);
    extend_top<Container>(items, kind);
  }

  // ---- what refers to something, or is made by Python's functions

  bool execute_reference(unsigned char opcode) {
    switch (opcode) {
      case 0x80: take<std::uint8_t>(); return true;   // protocol
      case 0x95: take<std::uint64_t>(); return true;  // frame
      case 'q': remember(take<std::uint8_t>()); return true;
      case 'r': remember(take<std::uint32_t>()); return true;
      case 0x94: remember(memo_.size()); return true;
      case 'h': recall(take<std::uint8_t>()); return true;
      case 'j': recall(take<std::uint32_t>()); return true;
      case 'c': push_global(); return true;
      case 0x93: push_global_of_stack(); return true;
      case 'Q': push_storage(pop_as<Tuple>("a tuple")); return true;
      case 'R': call(); return true;
      case 'b': set_attributes(); return true;
      case '0': pop(); return true;
      default: return false;
    }
  }

  void remember(std::uint64_t index) { memo_[index] = &top(); }

  void recall(std::uint64_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) fail("has a pickle that refers to a value that is not there");
    stack_.push_back(found->second);
  }

  void push_global() {
    const std::string module = take_line();
    push(Global{module + "." + take_line()});
  }

  void push_global_of_stack() {
    const std::string& name = pop_as<std::string>("a name");
    const std::string& module = pop_as<std::string>("a name");
    if (name.size() + module.size() > 200) fail("names something of Python's with more than 200 letters");
    push(Global{module + "." + name});
  }

  // ('storage', kind, key, device, number of elements)
  void push_storage(const Tuple& description) {
    const Nodes& items = description.items;
    if (items.size() != 5 || as<std::string>(*items[0], "a text") != "storage")
      fail("has a pickle that refers to what is no storage");
    const auto* kind = std::get_if<Global>(&items[1]->value);
    if (!kind) fail("has a storage without a kind");
    const at::ScalarType type = storage_type(kind->name);
    const auto elements = as<std::int64_t>(*items[4], "a number of elements");
    const auto size = static_cast<std::int64_t>(c10::elementSize(type));
    if (elements < 0 || elements > std::numeric_limits<std::int64_t>::max() / size)
      fail("has a storage of an impossible size");
    push(Storage{type, find_storage_(as<std::string>(*items[2], "a storage's name"),
                                     static_cast<std::uint64_t>(elements * size))});
  }

  void call() {
    const Nodes& arguments = pop_as<Tuple>("a tuple of arguments").items;
    Node* const function = pop();
    const auto* global = std::get_if<Global>(&function->value);
    if (!global) fail("has a pickle that calls what is no function");
    const std::string& name = global->name;
    const bool dict = name == "collections.OrderedDict" || name == "collections.Counter";
    if (name == "torch._utils._rebuild_tensor_v2")
      push(rebuild_tensor(arguments));
    else if (name == "torch._utils._rebuild_parameter" && !arguments.empty())
      push(as<at::Tensor>(*arguments[0], "a tensor"));
    else if (dict && arguments.empty())
      push(Dict());
    else if (dict && arguments.size() == 1)
      push(copy_of(as<Dict>(*arguments[0], "a dict")));
    else
      fail_foreign(name);
  }

  // A dict can be named many times, but there are only so many bytes to name it with.
  Dict copy_of(const Dict& dict) {
    constexpr std::size_t kMostCopied = 10'000'000;
    copied_ += dict.items.size();
    if (copied_ > kMostCopied) fail("copies the same dict again and again");
    return dict;
  }

  // (storage, offset, sizes, strides, requires_grad, backward_hooks, metadata)
  at::Tensor rebuild_tensor(const Nodes& arguments) {
    if (arguments.size() < 4) fail("has a tensor that lacks its sizes");
    const auto& storage = as<Storage>(*arguments[0], "a storage");
    const auto offset = as<std::int64_t>(*arguments[1], "an offset");
    // Of more dimensions LibTorch's tensors are not made either; and a tuple can be named many times.
    for (Node* numbers : {arguments[2], arguments[3]})
      if (as<Tuple>(*numbers, "a tuple").items.size() > 64) fail("has a tensor of more than 64 dimensions");
    const auto sizes = whole_numbers(*arguments[2]), strides = whole_numbers(*arguments[3]);
    if (offset < 0 || sizes.size() != strides.size())
      fail("has a tensor whose offset, sizes and strides do not go together");
    const at::Tensor elements = storage.bytes.view(storage.type);
    check_fits(offset, sizes, strides, elements.numel());
    return elements.as_strided(sizes, strides, elements.storage_offset() + offset);
  }

  static std::vector<std::int64_t> whole_numbers(Node& node) {
    std::vector<std::int64_t> numbers;
    for (Node* item : as<Tuple>(node, "a tuple").items) {
      numbers.push_back(as<std::int64_t>(*item, "a whole number"));
      if (numbers.back() < 0) fail("has a tensor with a size or stride below 0");
    }
    return numbers;
  }

  static void check_fits(std::int64_t offset, const std::vector<std::int64_t>& sizes,
                         const std::vector<std::int64_t>& strides, std::int64_t elements) {
    std::int64_t last = offset, count = 1;
    bool overflows = false;
    const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      std::int64_t reach = 0;
      overflows = overflows || __builtin_mul_overflow(std::max<std::int64_t>(sizes[i] - 1, 0), strides[i], &reach) ||
                  __builtin_add_overflow(last, reach, &last) ||
                  __builtin_mul_overflow(count, std::max<std::int64_t>(sizes[i], 1), &count);
    }
    // A tensor that repeats elements would be larger than the file.
    if (overflows || (!empty && (last >= elements || count > elements)) || (empty && offset > elements))
      fail("has a tensor that is larger than its storage");
  }

  // Those of an OrderedDict, in which PyTorch keeps the versions of modules, do not matter.
  void set_attributes() {
    pop();
    as<Dict>(top(), "an OrderedDict");
  }

  std::string_view rest_;
  const FindStorage& find_storage_;
  std::deque<Node> nodes_;  // that stay where they are
  Nodes stack_;
  std::unordered_map<std::uint64_t, Node*> memo_;
  std::size_t copied_ = 0;  // elements of dicts
};

// Makes IValues of nodes, each once.
class Converter {
 public:
  c10::IValue convert(const Node& node) {
    const auto [known, is_new] = known_.try_emplace(&node);
    if (!is_new) {
      if (!known->second) fail("has a value that holds itself");
      return *known->second;
    }
    if (depth_ == kDeepest) fail("has values that are nested too deeply");
    depth_ += 1;
    c10::IValue value = std::visit([this](const auto& one) { return make(one); }, node.value);
    depth_ -= 1;
    known_[&node] = value;
    return value;
  }

 private:
  static constexpr int kDeepest = 64;  // the destruction of values recurses

  static c10::IValue make(std::monostate) { return {}; }
  template <class T>
  static c10::IValue make(const T& plain) {
    return plain;
  }
  static c10::IValue make(const Global& global) { fail_foreign(global.name); }
  static c10::IValue make(const Storage&) { fail("has a storage without a tensor"); }

  c10::IValue make(const Tuple& tuple) {
    std::vector<c10::IValue> items;
    for (const Node* item : tuple.items) items.push_back(convert(*item));
    return c10::ivalue::Tuple::create(std::move(items));
  }

  c10::IValue make(const List& list) {
    c10::impl::GenericList items(c10::AnyType::get());
    for (const Node* item : list.items) items.push_back(convert(*item));
    return items;
  }

  c10::IValue make(const Dict& dict) {
    c10::impl::GenericDict items(c10::AnyType::get(), c10::AnyType::get());
    if (dict.items.size() % 2 != 0) fail("has a dict with a key that has no value");
    for (std::size_t i = 0; i < dict.items.size(); i += 2) {
      const c10::IValue key = convert(*dict.items[i]);
      if (!key.isString() && !key.isInt()) fail("has a dict with a key that is neither text nor a whole number");
      items.insert_or_assign(key, convert(*dict.items[i + 1]));
    }
    return items;
  }

  std::unordered_map<const Node*, std::optional<c10::IValue>> known_;  // nothing: is being made
  int depth_ = 0;
};

}  // namespace

c10::IValue unpickle(std::string_view pickle, const FindStorage& find_storage) {
  Machine machine(pickle, find_storage);
  return Converter().convert(machine.run());
}

}  // namespace tandem::io
