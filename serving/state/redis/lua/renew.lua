-- Renew the lease of the process that has the lead.
-- KEYS: holder. ARGV: TOKEN:OWNER, lease in milliseconds. Returns 1; 0: another process has the lead, or none.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
