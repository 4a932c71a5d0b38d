# A user whose services run without a login.
{
  users.users.alice = {
    isNormalUser = true;
    uid = 1000;
    linger = true;
  };
}
