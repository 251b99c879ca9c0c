-- Give the lead up.
-- KEYS: holder. ARGV: TOKEN:OWNER. Returns 1; 0: another process has the lead, or none.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
