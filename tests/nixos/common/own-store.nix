# A store with nothing but this machine's closure, from which garbage can be collected. Ordinarily a machine shows the
# whole store of its host, and a collection would go through all of that.
{
  virtualisation = {
    useNixStoreImage = true;
    writableStore = true;
  };
}
