"""The Lua scripts that a Redis executes atomically. Pure.

A script checks everything before it writes anything, so a refusal changes nothing. Most answers begin with a word such
as `ok`. KEYS of one session are in one hash slot; where a script does not need a key, the session's own is passed.

A session's hash has the fields `record` and `state` (JSON), `status`, `tenant`, `last` (number of the last event),
`command` (position of the last command), `owner` (the process that acquired it last; other processes may not write),
`nonce` (of the owner's last append, so that an append repeated after a lost answer is not done twice), `span_bytes`
(size of the spans from its sandbox) and `spans_left_out`.
"""

from __future__ import annotations

_PUSH = """
local function push(session, commands, channel, data)
    local position = redis.call('HINCRBY', session, 'command', 1)
    redis.call('XADD', commands, string.format('%d-0', position), 'd', data)
    redis.call('PUBLISH', channel, 'C')
    return position
end
"""

CREATE = (
    _PUSH
    + """
local session, commands, lease = KEYS[1], KEYS[2], KEYS[3]
local by_tenant, open_by_tenant, all, all_open = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local id, owner, record, state, status, tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local created_at, last, most_open, milliseconds, channel = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local there = redis.call('HMGET', session, 'record', 'owner')
if there[1] then
    if there[1] == record and there[2] == owner then return {'ok'} end
    return {'exists'}
end
if most_open ~= '' and redis.call('ZCARD', open_by_tenant) >= tonumber(most_open) then return {'many'} end
redis.call('HSET', session, 'record', record, 'state', state, 'status', status, 'tenant', tenant, 'last', last,
    'command', 0, 'owner', owner)
redis.call('SET', lease, owner, 'PX', milliseconds)
for _, key in ipairs({by_tenant, open_by_tenant, all, all_open}) do redis.call('ZADD', key, created_at, id) end
for index = 12, #ARGV do push(session, commands, channel, ARGV[index]) end
return {'ok'}
"""
)

APPEND = """
local session, events, spans, commands, decisions = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local spent, open_by_tenant, all_open, all_closed = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local id, owner, nonce, last, state, status = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local closed, closed_at, done, channel = ARGV[7] == '1', ARGV[8], tonumber(ARGV[9]), ARGV[10]
local nano, spent_seconds = ARGV[11], ARGV[12]
local own_spans, most_spans = ARGV[13], tonumber(ARGV[14])
local event_count, span_count = tonumber(ARGV[15]), tonumber(ARGV[16])
local there = redis.call('HMGET', session, 'owner', 'last', 'nonce', 'state')
if there[1] ~= owner then return {'owner'} end
if there[3] == nonce then return {'ok'} end
local before = tonumber(there[2])
if event_count > 0 and before == last and there[4] == state then
    local latest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    if latest and latest[2][2] == ARGV[16 + event_count] then return {'ok'} end
end
if before + event_count ~= last then return {'number', before + 1} end
local at = 16
for index = 1, event_count do
    redis.call('XADD', events, string.format('%d-0', before + index), 'd', ARGV[at + index])
end
at = at + event_count
local left_out, size = 0, tonumber(redis.call('HGET', session, 'span_bytes') or 0)
for index = 1, span_count do
    local data = ARGV[at + index]
    local own = string.sub(data, 1, #own_spans) == own_spans
    if own or size + #data <= most_spans then
        redis.call('RPUSH', spans, data)
        if not own then size = size + #data end
    else
        left_out = left_out + 1
    end
end
if span_count > 0 then redis.call('HSET', session, 'span_bytes', size) end
local is_first = left_out > 0 and redis.call('HINCRBY', session, 'spans_left_out', left_out) == left_out
at = at + span_count
for index = at + 1, #ARGV, 2 do redis.call('HSET', decisions, ARGV[index], ARGV[index + 1]) end
redis.call('HSET', session, 'state', state, 'status', status, 'last', last, 'nonce', nonce)
if done > 0 then redis.call('XTRIM', commands, 'MINID', string.format('%d-0', done + 1)) end
if nano ~= '0' then
    redis.call('INCRBY', spent, nano)
    redis.call('EXPIRE', spent, spent_seconds)
end
if closed then
    redis.call('ZREM', open_by_tenant, id)
    redis.call('ZREM', all_open, id)
    if closed_at ~= '' then redis.call('ZADD', all_closed, closed_at, id) end
end
if event_count > 0 then redis.call('PUBLISH', channel, 'E') end
if is_first then return {'ok', 'left out'} end
return {'ok'}
"""

PUSH = (
    _PUSH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'unknown'} end
return {'ok', push(KEYS[1], KEYS[2], ARGV[1], ARGV[2])}
"""
)

DECIDE = (
    _PUSH
    + """
local session, commands, decisions = KEYS[1], KEYS[2], KEYS[3]
local request, decision, channel = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', session) == 0 then return {'unknown'} end
local first = redis.call('HGET', decisions, request)
if first == decision then return {'ok'} end
if first then return {'first', first} end
redis.call('HSET', decisions, request, decision)
if ARGV[4] then push(session, commands, channel, ARGV[4]) end
return {'ok'}
"""
)

ACQUIRE = """
local session, lease = KEYS[1], KEYS[2]
local owner, milliseconds = ARGV[1], ARGV[2]
if redis.call('EXISTS', session) == 0 then return {'unknown'} end
local living = redis.call('GET', lease)
if living and living ~= owner then return {'owner'} end
redis.call('SET', lease, owner, 'PX', milliseconds)
redis.call('HSET', session, 'owner', owner)
return {'ok'}
"""

RENEW = """
local session, lease = KEYS[1], KEYS[2]
local owner, milliseconds = ARGV[1], ARGV[2]
if redis.call('HGET', session, 'owner') ~= owner then return {'owner'} end
redis.call('SET', lease, owner, 'PX', milliseconds)
return {'ok'}
"""

RELEASE = """
local session, lease = KEYS[1], KEYS[2]
if redis.call('HGET', session, 'owner') ~= ARGV[1] then return {'owner'} end
redis.call('HDEL', session, 'owner')
redis.call('DEL', lease)
return {'ok'}
"""

READ = """
local stream, after, limit, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, size = {}, 0
while limit > 0 do
    local entries = redis.call('XRANGE', stream, string.format('%d-0', after + 1), '+', 'COUNT', math.min(limit, 16))
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
        local data = entry[2][2]
        size = size + #data
        if #found > 0 and size > most then return found end
        after = tonumber(string.match(entry[1], '^%d+'))
        found[#found + 1] = after
        found[#found + 1] = data
    end
    limit = limit - #entries
end
return found
"""

OLDEST = """
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if first then return tonumber(string.match(first[1], '^%d+')) end
return tonumber(redis.call('HGET', KEYS[1], 'last') or 0) + 1
"""

TRIM = """
local last = redis.call('HGET', KEYS[1], 'last')
if last then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d-0', last - ARGV[1] + 1)) end
return {'ok'}
"""

_FILES = """
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function drop(files, sizes, id)
    if redis.call('ZREM', files, id) == 0 then return end
    redis.call('HINCRBY', sizes, '', -redis.call('HGET', sizes, id))
    redis.call('HDEL', sizes, id)
end
"""

PUT_FILE = (
    _FILES
    + """
local file, files, sizes = KEYS[1], KEYS[2], KEYS[3]
local id, data, size, milliseconds, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for _, each in ipairs(redis.call('ZRANGEBYSCORE', files, '-inf', now())) do drop(files, sizes, each) end
local used = tonumber(redis.call('HGET', sizes, '') or 0) - tonumber(redis.call('HGET', sizes, id) or 0)
if most and used + size > most then return {'full'} end
drop(files, sizes, id)
redis.call('SET', file, data, 'PX', milliseconds)
redis.call('ZADD', files, now() + milliseconds, id)
redis.call('HSET', sizes, id, size)
redis.call('HINCRBY', sizes, '', size)
for _, key in ipairs({files, sizes}) do
    if redis.call('PTTL', key) < milliseconds then redis.call('PEXPIRE', key, milliseconds) end
end
return {'ok'}
"""
)

REMOVE_FILE = (
    _FILES
    + """
redis.call('UNLINK', KEYS[1])
drop(KEYS[2], KEYS[3], ARGV[1])
return {'ok'}
"""
)

RESERVE = """
local there = redis.call('HMGET', KEYS[1], 'digest', 'answer')
if there[1] then return {'first', there[1], there[2]} end
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'ok'}
"""

ANSWER = """
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest and digest ~= ARGV[1] then return {'first'} end
if not ARGV[3] then
    redis.call('DEL', KEYS[1])
    return {'ok'}
end
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'answer', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'ok'}
"""

COUNT = """
local time = redis.call('TIME')
local now, window = time[1] + time[2] / 1e6, tonumber(ARGV[1])
local number = string.format('%.0f', math.floor(now / window))
if redis.call('HGET', KEYS[1], 'window') ~= number then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'window', number)
redis.call('PEXPIRE', KEYS[1], math.max(1, math.ceil(window * 1000)))
return redis.call('HINCRBY', KEYS[1], 'number', 1)
"""

EXPIRE = """
local all_closed, by_tenant, all = KEYS[7], KEYS[8], KEYS[9]
if redis.call('ZREM', all_closed, ARGV[1]) == 0 then return 0 end
redis.call('ZREM', by_tenant, ARGV[1])
redis.call('ZREM', all, ARGV[1])
for index = 1, 6 do redis.call('UNLINK', KEYS[index]) end
return 1
"""

DROP_DIGEST = """
local digest = redis.call('HGET', KEYS[2], ARGV[1])
if not digest then return 0 end
redis.call('HDEL', KEYS[1], digest)
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
"""
