#include "io/unpickle.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <utility>

#include "io/pickle_nodes.h"

namespace tandem::io {

// Carries out the operations of a pickle, one after the other, on a stack.
class Unpickled::Machine {
 public:
  explicit Machine(std::string_view bytes) : rest_(bytes) {
    for (unsigned char opcode = 0; (opcode = take<unsigned char>()) != '.';)
      if (!execute_constant(opcode) && !execute_container(opcode) && !execute_reference(opcode))
        fail_pickle("has a pickle with an operation that is not known: " + std::to_string(opcode));
    result_ = pop();
    bytes_ = bytes.size() - rest_.size();
  }

  const PickleNode& result() const { return *result_; }
  std::size_t bytes() const { return bytes_; }
  const std::map<std::string, PickledStorage>& storages() const { return storages_; }

 private:
  // ---- bytes

  std::string_view take_bytes(std::uint64_t count) {
    if (count > rest_.size()) fail_pickle("has a pickle that is cut off");
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

  template <class Size>
  std::string take_text() {
    return std::string(take_bytes(take<Size>()));
  }

  std::string take_line() {
    const auto end = rest_.find('\n');
    if (end == std::string_view::npos) fail_pickle("has a pickle that is cut off");
    std::string line(take_bytes(end));
    take_bytes(1);
    return line;
  }

  // ---- the stack, where null is a mark

  template <class T>
  void push(T value) {
    stack_.push_back(&nodes_.emplace_back(PickleNode{std::move(value)}));
  }

  PickleNode* pop() {
    PickleNode* node = &top();
    stack_.pop_back();
    return node;
  }

  template <class T>
  T& pop_as(const char* kind) {
    return as<T>(*pop(), kind);
  }

  // What lies above the last mark, which goes too.
  PickleNodes pop_to_mark() {
    const auto mark = std::find(stack_.rbegin(), stack_.rend(), nullptr);
    if (mark == stack_.rend()) fail_pickle("has a pickle that goes back to a mark where there is none");
    PickleNodes items(mark.base(), stack_.end());
    stack_.erase(mark.base() - 1, stack_.end());
    return items;
  }

  PickleNodes pop_items(std::size_t count) {
    PickleNodes items(count);
    for (std::size_t i = count; i-- > 0;) items[i] = pop();
    return items;
  }

  PickleNode& top() {
    if (stack_.empty() || !stack_.back()) fail_pickle("has a pickle that takes a value where there is none");
    return *stack_.back();
  }

  template <class Container>
  void extend_top(const PickleNodes& items, const char* kind) {
    PickleNodes& all = as<Container>(top(), kind).items;
    all.insert(all.end(), items.begin(), items.end());
  }

  // ---- constants; bytes are texts here

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
      case 'U':
      case 'C':
      case 0x8c: push(take_text<std::uint8_t>()); return true;
      case 'T':
      case 'B':
      case 'X': push(take_text<std::uint32_t>()); return true;
      case 0x8d:
      case 0x8e:
      case 0x96: push(take_text<std::uint64_t>()); return true;
      default: return false;
    }
  }

  void push_long(std::string_view bytes) {
    if (bytes.size() > 8) return push(PickledLong());
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
      case '}': push(PickledDict()); return true;
      case ']': push(PickledList()); return true;
      case ')': push(PickledTuple()); return true;
      case 0x85: push(PickledTuple{pop_items(1)}); return true;
      case 0x86: push(PickledTuple{pop_items(2)}); return true;
      case 0x87: push(PickledTuple{pop_items(3)}); return true;
      case '(': stack_.push_back(nullptr); return true;
      case 't': push(PickledTuple{pop_to_mark()}); return true;
      case 'l': push(PickledList{pop_to_mark()}); return true;
      case 'd': push(PickledDict{pop_to_mark()}); return true;
      case 'a': extend_top_with_last<PickledList>(1, "a list"); return true;
      case 's': extend_top_with_last<PickledDict>(2, "a dict"); return true;
      case 'e': extend_top<PickledList>(pop_to_mark(), "a list"); return true;
      case 'u': extend_top<PickledDict>(pop_to_mark(), "a dict"); return true;
      default: return false;
    }
  }

  template <class Container>
  void extend_top_with_last(std::size_t count, const char* kind) {
    const PickleNodes items = pop_items(count);
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
      case 'Q': push_storage(); return true;
      case 'R': call(); return true;
      case 0x81: refuse_object();  // of any class
      case 0x8f: fail_foreign("builtins.set");
      case 'b': build(); return true;
      case '0': pop(); return true;
      default: return false;
    }
  }

  void remember(std::uint64_t index) { memo_[index] = &top(); }

  void recall(std::uint64_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) fail_pickle("has a pickle that refers to a value that is not there");
    stack_.push_back(found->second);
  }

  void push_global() {
    const std::string module = take_line();
    push_global(module, take_line());
  }

  void push_global_of_stack() {
    const std::string& name = pop_as<std::string>("a name");
    push_global(pop_as<std::string>("a name"), name);
  }

  void push_global(const std::string& module, const std::string& name) {
    if (name.size() + module.size() > 200) fail_pickle("names something of Python's with more than 200 letters");
    push(PickledGlobal{(module == "__builtin__" ? "builtins" : module) + "." + name});  // as Python 2 calls it
  }

  void push_storage() {
    push(std::make_unique<PickledBytes>(pickled_storage(pop_as<PickledTuple>("a tuple"), storages_)));
  }

  void call() {
    const PickleNodes& arguments = pop_as<PickledTuple>("a tuple of arguments").items;
    const auto* function = std::get_if<PickledGlobal>(&pop()->value);
    if (!function) fail_pickle("has a pickle that calls what is no function");
    auto made = call_of_python(function->name, arguments, copied_);
    if (auto* const* known = std::get_if<PickleNode*>(&made))
      stack_.push_back(*known);
    else
      stack_.push_back(&nodes_.emplace_back(std::move(std::get<PickleNode>(made))));
  }

  [[noreturn]] void refuse_object() {
    pop();  // arguments
    fail_foreign(as<PickledGlobal>(*pop(), "a class").name);
  }

  void build() {
    PickleNode& state = *pop();
    set_state(top(), state);
  }

  std::string_view rest_;
  std::size_t bytes_ = 0;
  std::deque<PickleNode> nodes_;  // that stay where they are
  PickleNodes stack_;
  std::unordered_map<std::uint64_t, PickleNode*> memo_;
  std::map<std::string, PickledStorage> storages_;
  std::size_t copied_ = 0;
  const PickleNode* result_ = nullptr;
};

bool is_key(const c10::IValue& value) {
  return value.isString() || value.isInt() || value.isDouble() || value.isBool() || value.isComplexDouble() ||
         value.isDevice();
}

Unpickled::Unpickled(std::string_view bytes) : machine_(std::make_unique<Machine>(bytes)) {}

Unpickled::~Unpickled() = default;

std::size_t Unpickled::bytes() const { return machine_->bytes(); }

const std::map<std::string, PickledStorage>& Unpickled::storages() const { return machine_->storages(); }

c10::IValue Unpickled::value(const FindStorage& find_storage) const {
  return value_of(machine_->result(), find_storage);
}

}  // namespace tandem::io
