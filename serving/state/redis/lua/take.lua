-- Take the lead where nobody has it.
-- KEYS: holder, fence, identity. ARGV: owner, lease in milliseconds, identity that the Redis must have or empty. Returns the
-- new token; 0: another process has the lead, or it is not that Redis.
if ARGV[3] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[3] then return 0 end
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token .. ':' .. ARGV[1], 'PX', ARGV[2])
return token
