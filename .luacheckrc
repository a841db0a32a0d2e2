-- `make check` looks at the scripts as Redis sees them: Lua 5.1, these globals, none of our own.
std = "lua51"
read_globals = { "redis", "cjson", "cmsgpack", "bit", "KEYS", "ARGV" }
max_line_length = 120
-- No script uses the whole prelude, so only the one made of all parts is checked for unused names.
unused = false
files[".lua-check/commit.lua"] = { unused = true }
